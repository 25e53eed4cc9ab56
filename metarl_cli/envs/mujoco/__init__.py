"""MuJoCo's bodies with all copies stepped at once (Todorov 2012, doi:10.1109/IROS.2012.6386109): robots as native families.

The bodies are Gymnasium's v5 models. Observations and starts are its own, but for the ant's contact forces, which are neither
observed nor paid for. So are rewards, but for what the goal replaces:

| goal | reward beside costs and survival | task parameters |
|---|---|---|
| forward | the velocity along x | none |
| direction | the velocity in a direction; of planar bodies 0 is forward and pi backward | angle [rad] |
| velocity | minus the distance of the velocity along x from a hidden one | velocity [m/s] |
| position | minus the L1 distance of the ant from a hidden place | goal_x, goal_y [m] |

Physics vary by factors above 0, in any family: gravity, mass (with inertia), friction, damping and strength (of the actuators).
A number at the end names one body, degree of freedom or motor, such as mass_2.

Action space: torques in [-1, 1], one for each motor. Observation: positions but for the place in the world, and velocities,
which hoppers and walkers see within ±10. Start: the nominal pose with noise. Ends: where a body that can fall is not healthy
(terminated, unless ``terminate`` is off), or at the horizon (truncated).

A state is what MuJoCo steps from, its solver without a warm start, so that environments equal Gymnasium's with that flag bit
for bit, and a checkpoint holds states. ``mujoco.rollout`` steps the copies, in the threads of ``hardware.threads``.

Differs from Gymnasium: it reads the ant's place from the last stage of its integrator, this family from the state; in episodes
of random actions they are 0.003 m/s apart on average, and up to 0.1 where a foot strikes. Differs from the papers: MAML's
bodies (Finn, Abbeel and Levine 2017, arXiv:1703.03400) take a control step of 0.01 s, Gymnasium's one of 0.05 s, so that
returns over as many steps do not compare; PEARL's (Rakelly and others 2019, arXiv:1903.08254) observe the torso's place too,
and draw factors of physics as powers of 1.5.
"""

from metarl_cli.envs.mujoco.family import Config, MujocoFamily

Family = MujocoFamily

__all__ = ["Config", "Family", "MujocoFamily"]
