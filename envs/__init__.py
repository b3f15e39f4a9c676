"""Environments and data: the reverse diffusion chain as an environment, and where its clean points come from.

Importing this package registers two names with Gymnasium, both made by
:class:`~dagdiff.envs.gymnasium.DenoisingGymEnv` (one chain) and :class:`~dagdiff.envs.gymnasium.DenoisingVectorEnv`:

- ``dagdiff/Denoising-v0``: the action space is wide enough for any prediction of standardised data;
- ``dagdiff/DenoisingBounded-v0``: the same chain with an action space of [-3, 3], for policies that explore all of it.
"""

import gymnasium

for _name, _bound in {"Denoising": {}, "DenoisingBounded": {"bound": 3.0}}.items():
    gymnasium.register(
        f"dagdiff/{_name}-v0",
        entry_point="dagdiff.envs.gymnasium:DenoisingGymEnv",
        vector_entry_point="dagdiff.envs.gymnasium:DenoisingVectorEnv",
        kwargs=_bound,
    )
