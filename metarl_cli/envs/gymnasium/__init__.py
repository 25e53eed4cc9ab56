"""Any Gymnasium environment as a family of tasks, by configuration alone (Towers and others 2024, arXiv:2407.17032).

A task parameter goes to one place or to several, its addresses ``set``:

| address | sets |
|---|---|
| ``constructor.PATH`` | an argument of the environment, e.g. ``constructor.wind_power``, or an entry of a dict or list in one |
| ``attribute.PATH`` | a number of the unwrapped environment, e.g. ``attribute.gravity`` or ``attribute.model.opt.gravity.2`` |
| ``scale.PATH`` | the same, multiplied by the parameter; whole arrays too, e.g. ``scale.model.body_mass`` |
| ``reset.PATH`` | an attribute that every reset draws anew, written after it |
| ``options.PATH`` | an option of every reset |
| ``wrapper.NAME.PATH`` | an argument of one of ``wrappers``, e.g. ``wrapper.Direction.angle`` |
| ``seed`` | the seed of every episode: a task is a level |

Parameters vary within ``ranges``, or over a few ``choices``; where all are choices, the splits share the tasks, but for
``test_choices``, which test tasks have in their place. Levels are whole numbers: test tasks have the upper half of a range.

Action and observation space, reward and ends: the environment's own, as its wrappers leave them; discrete actions or bounded
vectors; observations are tensors, images ``[C, H, W]`` in bytes. Start: the environment's, each episode from a seed of its own.

An episode is its seed and its actions, so a checkpoint holds these and loading plays them again: deterministic simulators
continue with the same bits. A package that a configuration names is imported if it is a well-known one, or one that the user
has named. Environments are looked up in Gymnasium's registry, wrappers in a list, and attributes must exist and be public.

The rewards of the literature's locomotion tasks are wrappers of this package:

* ``Direction``: forward or backward (Finn, Abbeel and Levine 2017, arXiv:1703.03400), or any direction of the plane.
* ``Velocity``: a hidden speed (the same; range and horizon as in Rakelly and others 2019, arXiv:1903.08254).

Differs from the papers: the bodies are Gymnasium's v5, with its observations and, for the ant, its contact forces.
"""

from metarl_cli.envs.gymnasium.config import Config
from metarl_cli.envs.gymnasium.family import GymnasiumFamily

Family = GymnasiumFamily

__all__ = ["Config", "Family", "GymnasiumFamily"]
