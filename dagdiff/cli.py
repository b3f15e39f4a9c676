"""The command line. ``dagdiff COMMAND --help`` explains each command; this page stays light and loads no torch.

A mistake of the user's ends with status 2 and one line that names the value, the problem and the cure. Any other error
ends with status 70 and one line that names it and a file with the traceback (:mod:`dagdiff.crash`).
"""

import io
import os
import sys
from collections.abc import Callable, Sequence

USAGE = """\
usage: dagdiff COMMAND [options]

Diffusion distillation as imitation learning: DAgger for diffusion.

commands:
  distill   distil a teacher into a few-step student, and save the run in a folder
  sample    draw points from the student of a run
  shift     measure a student's covariate shift, step by step
  export    write a run's student as a diffusers pipeline, or its adapters
  bench     compare what students are trained on: a suite of runs, a table and a report
  judge     judge somebody's student on a task of the bench, and make its row
  cache     make ahead what runs of a pipeline read: embedded prompts, states of pictures
  gather    let the expert answer ahead of many runs: labelled records in shards
  teacher   train the learned teacher of a task (once; it is cached)
  list      name the tasks, objectives, experts, policies, drivers, curricula, thresholds or schedules there are

`dagdiff COMMAND --help` explains a command; `dagdiff --version` says which dagdiff this is.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status.

    It is 0, 2 for a mistake of the user's, 3 for a loss that is not finite, 70 for a fault of the program.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # the name of a file may hold what the terminal can't show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        from dagdiff import __version__

        print(f"dagdiff {__version__}")
        return 0
    return _guarded(words[0], words[1:])


def _guarded(command: str, words: Sequence[str]) -> int:
    """Run a command; an error becomes one line, and so does any other error, with the traceback in a file."""
    from dagdiff.checks import Refusal, check_in, first_line
    from dagdiff.round import NonFiniteLoss

    try:
        find(check_in("command", command, COMMANDS))(words)
    except (Refusal, NonFiniteLoss) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0" or "RANK" not in os.environ:  # of a machine's processes one tells
            _say(str(error))
        return 3 if isinstance(error, NonFiniteLoss) else 2
    except KeyboardInterrupt as stop:
        print(f"dagdiff: {stop}" if str(stop) else "dagdiff: stopped", file=sys.stderr)
        return int(getattr(stop, "status", 130))
    except BrokenPipeError:  # whoever read the output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        from dagdiff.crash import disk_failure, out_of_memory, told

        if out_of_memory(error):
            reason = f"{type(error).__name__}: {first_line(error):.150}"
            _say(f"memory does not hold this ({reason}). Lower batch_size, chains, heldout, samples or --num.")
            return 2
        if failure := disk_failure(error):
            _say(f"{failure}. Make room, or name a folder that can be written; the same command resumes.")
            return 2
        _say(told(error, [command, *words]))
        return FAULT
    return 0


def _say(text: str) -> None:
    """Print a message as one line; of a long one, which quotes what a file holds, the two ends: problem and cure."""
    line = " ".join(text.split())
    line = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[5 - _LONGEST // 2 :]}"
    print(f"dagdiff: error: {line}", file=sys.stderr)


def find(command: str) -> Callable[[Sequence[str]], None]:
    """Import a command's function: only the one that is called is loaded, and with it what it needs."""
    from importlib import import_module

    module, name = COMMANDS[command].rsplit(".", 1)
    function: Callable[[Sequence[str]], None] = getattr(import_module(module), name)
    return function


COMMANDS = {
    "distill": "dagdiff.commands.distill.distill",
    "sample": "dagdiff.commands.sample.sample",
    "shift": "dagdiff.commands.shift.shift",
    "export": "dagdiff.commands.export.export",
    "bench": "dagdiff.benchmarks.command.bench",
    "judge": "dagdiff.commands.judge.judge",
    "cache": "dagdiff.commands.cache.cache",
    "gather": "dagdiff.commands.gather.gather",
    "teacher": "dagdiff.commands.teacher.teacher",
    "list": "dagdiff.commands.names.list_names",
}
"""Command -> the function that runs it."""

FAULT = 70
"""The exit status of an error that is nobody's mistake at the command line (sysexits' EX_SOFTWARE)."""

_LONGEST = 480  # characters of a message


if __name__ == "__main__":
    sys.exit(main())
