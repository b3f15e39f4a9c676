// The chain explorer: student and expert from the same noise, step by step. It needs nothing but the page's own data.
"use strict";
const explorer = (() => {
  // How far each state is from the expert's of the same chain and step: Euclidean distance of points.
  const distances = (paths, expert) => paths.map((path, chain) =>
    path.map((state, step) => Math.hypot(...state.map((x, axis) => x - expert[chain][step][axis]))));
  const mean = numbers => numbers.reduce((sum, each) => sum + each, 0) / numbers.length;
  const spelled = error => error >= 100 ? error.toFixed(0) : error >= 0.1 || error === 0 ? error.toFixed(2) : error.toPrecision(2);
  // The chain whose state lies nearest to a place, if one is within reach; all in the units of the data.
  const nearest = (paths, step, x, y, reach) => {
    let found = -1, least = reach;
    paths.forEach((path, chain) => {
      const far = Math.hypot(path[step][0] - x, path[step][1] - y);
      if (far < least) [found, least] = [chain, far];
    });
    return found;
  };
  const errorsOf = view => {
    if (view.errors) return view.errors;
    const expert = view.chains[view.kinds.findIndex(kind => kind.expert)];
    return view.chains.map(paths => distances(paths, expert));
  };

  function start(root, views) {
    const part = name => root.querySelector(`[data-part=${name}]`);
    const [choice, slider, told, panels, play] = ["choice", "step", "told", "panels", "play"].map(part);
    let view, errors, canvases = [], marked = -1, timer = 0;

    function choose(number) {
      view = views[number];
      errors = errorsOf(view);
      marked = -1;
      slider.max = view.times.length - 1;
      slider.value = slider.max;
      panels.replaceChildren();
      canvases = view.kinds.map((kind, place) => {
        const figure = document.createElement("figure"), canvas = document.createElement("canvas");
        const caption = document.createElement("figcaption");
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `chains of ${kind.name}`);
        [canvas.width, canvas.height] = size();
        figure.append(canvas, caption);
        panels.append(figure);
        canvas.addEventListener("pointermove", event => mark(at(canvas, place, event)));
        canvas.addEventListener("pointerdown", event => mark(at(canvas, place, event)));
        canvas.addEventListener("pointerleave", () => mark(-1));
        return {canvas, caption, kind};
      });
      draw();
    }

    const size = () => view.pixels ? [view.shape[4] * 8 * 3, view.shape[3] * 8 * Math.ceil(view.shape[0] / 3)] : [440, 440];

    // The chain under the pointer.
    function at(canvas, place, event) {
      const box = canvas.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
      if (view.pixels) {
        const down = Math.ceil(view.shape[0] / 3), chain = Math.floor(y * down) * 3 + Math.floor(x * 3);
        return chain < view.shape[0] ? chain : -1;
      }
      const half = view.half;
      return nearest(view.chains[place], +slider.value, half * (2 * x - 1), half * (1 - 2 * y), half / 8);
    }

    function mark(chain) {
      if (chain === marked) return;
      marked = chain;
      draw();
    }

    function draw() {
      const step = +slider.value, last = view.times.length - 1;
      told.textContent = `step ${step} of ${last}, t = ${view.times[step].toFixed(2)}` +
        (step === 0 ? " (noise)" : step === last ? " (data)" : "") + (marked < 0 ? "" : `, chain ${marked + 1}`);
      canvases.forEach(({canvas, caption, kind}, place) => {
        (view.pixels ? drawImages : drawPoints)(canvas.getContext("2d"), canvas, place, step);
        const error = marked < 0 ? mean(errors[place].map(path => path[step])) : errors[place][marked][step];
        caption.innerHTML = "<b></b><span></span>";
        caption.firstChild.textContent = kind.name;
        caption.lastChild.textContent = kind.expert ? "" : marked < 0
          ? ` mean error ${spelled(error)}` : ` error of chain ${marked + 1}: ${spelled(error)}`;
      });
    }

    function drawPoints(pen, canvas, place, step) {
      const side = canvas.width, half = view.half;
      const to = ([x, y]) => [(x / half + 1) * side / 2, (1 - y / half) * side / 2];
      const dot = (point, radius) => { pen.beginPath(); pen.arc(...to(point), radius, 0, 7); pen.fill(); };
      pen.clearRect(0, 0, side, side);
      pen.fillStyle = "#dddddd";
      view.target.forEach(point => dot(point, 2));
      const expert = view.chains[view.kinds.findIndex(kind => kind.expert)];
      view.chains[place].forEach((path, chain) => {
        const far = marked >= 0 && chain !== marked;
        pen.globalAlpha = far ? 0.12 : 0.45;
        pen.strokeStyle = pen.fillStyle = view.kinds[place].colour;
        pen.lineWidth = chain === marked ? 3 : 1.2;
        pen.beginPath();
        path.slice(0, step + 1).forEach(point => pen.lineTo(...to(point)));
        pen.stroke();
        pen.globalAlpha = far ? 0.2 : 1;
        dot(path[step], chain === marked ? 7 : 4.5);
        if (chain === marked && !view.kinds[place].expert) { // from the student's state to the expert's
          pen.strokeStyle = "#222222";
          pen.lineWidth = 1.5;
          pen.setLineDash([5, 4]);
          pen.beginPath();
          pen.moveTo(...to(path[step]));
          pen.lineTo(...to(expert[chain][step]));
          pen.stroke();
          pen.setLineDash([]);
        }
      });
      pen.globalAlpha = 1;
    }

    function drawImages(pen, canvas, place, step) {
      const [count, steps, channels, height, width] = view.shape, big = 8;
      const pixels = Uint8Array.from(atob(view.pixels[place]), letter => letter.charCodeAt(0));
      pen.fillStyle = "#ffffff";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      for (let chain = 0; chain < count; chain++) {
        const image = pen.createImageData(width, height), begin = (chain * steps + step) * channels * height * width;
        for (let place = 0; place < height * width; place++) {
          for (let colour = 0; colour < 3; colour++)
            image.data[4 * place + colour] = pixels[begin + Math.min(colour, channels - 1) * height * width + place];
          image.data[4 * place + 3] = 255;
        }
        const small = document.createElement("canvas");
        [small.width, small.height] = [width, height];
        small.getContext("2d").putImageData(image, 0, 0);
        const left = (chain % 3) * width * big, top = Math.floor(chain / 3) * height * big;
        pen.imageSmoothingEnabled = false;
        pen.drawImage(small, left + 2, top + 2, width * big - 4, height * big - 4);
        if (chain === marked) {
          pen.strokeStyle = "#d55e00";
          pen.lineWidth = 4;
          pen.strokeRect(left + 2, top + 2, width * big - 4, height * big - 4);
        }
      }
    }

    function stop() {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
    }

    choice.addEventListener("change", () => { stop(); choose(choice.selectedIndex); });
    slider.addEventListener("input", () => { stop(); draw(); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      play.textContent = "Stop";
      if (+slider.value === +slider.max) slider.value = 0;
      draw();
      timer = setInterval(() => {
        slider.value = +slider.value + 1;
        draw();
        if (+slider.value === +slider.max) stop();
      }, 700);
    });
    choose(0);
  }

  return {distances, mean, nearest, errorsOf, spelled, start};
})();
if (typeof module !== "undefined") module.exports = explorer;
