"""MuJoCo's bodies with all copies stepped at once (Todorov 2012, doi:10.1109/IROS.2012.6386109): robots as native families.

The bodies are Gymnasium's v5 models: half_cheetah, ant, hopper, walker2d, humanoid, reacher. Observations and starts are its
own, but for what is listed below. So are rewards, but for what the goal replaces, times ``goal_reward``:

| goal | reward beside costs and survival | task parameters |
|---|---|---|
| forward | the velocity along x | none |
| direction | the velocity in a direction; of planar bodies 0 is forward and pi backward | angle [rad] |
| velocity | minus the distance of the velocity along x from a hidden one | velocity [m/s] |
| position | minus the L1 distance from a hidden place | goal_x, goal_y [m] |
| reach | minus the distance from a hidden place | goal_x, goal_y [m] |

Best possible: unknown. The upper line is a policy that is given the task parameters (``algo=oracle_pg``, ``oracle_dqn``).

A body is where its torso is, a humanoid where its centre of mass is, and an arm where its fingertip is.

Physics vary by factors above 0, in any family: gravity, mass (with inertia), inertia, friction, damping, strength (of the
actuators) and size. A number at the end names one body, shape, degree of freedom or motor, such as mass_2, and mass_* in a
configuration each of them. Factors are drawn uniformly (``ranges``), or uniformly in their logarithm (``log_ranges``).
size multiplies lengths and radii of links, which keep their masses. Links hang where those that carry them end, and the ground
is as far below the body's first pose as below the nominal one, so that starts and observed heights do not tell the size.

Action space: torques within the model's bounds, one for each motor. Observation: positions but for the place in the world, and
velocities, which hoppers and walkers see within ±10; of the arm the cosines and sines of its two joints, and their velocities.
Start: the nominal pose with noise. Ends: where a body that can fall is not healthy (terminated, unless ``terminate`` is off),
or at the horizon (truncated).

A state is what MuJoCo steps from, its solver without a warm start, so that environments equal Gymnasium's with that flag bit
for bit, and a checkpoint holds states. ``mujoco.rollout`` steps the copies, in the threads of ``hardware.threads``.

Differs from Gymnasium:

- The ant and the humanoid do not observe contact forces, nor pay for them; the humanoid does not observe the inertia and the
  velocity of each body about the centre of mass either, nor the actuators' forces: 45 of 348 numbers remain.
- The arm observes neither the goal nor the fingertip's way to it, which would tell the task: 6 of Reacher-v5's 10 numbers
  remain. Its goal stays from episode to episode; Reacher-v5 draws one for each.
- Gymnasium reads places of the ant, the humanoid and the arm from the last stage of its integrator, this family from the state.
  In episodes of random actions rewards are 0.005, 0.0001 and 0.00001 apart on average.

Differs from the papers: MAML's bodies (Finn, Abbeel and Levine 2017, arXiv:1703.03400) take a control step of 0.01 s,
Gymnasium's one of 0.05 s, so that returns over as many steps do not compare. The humanoid of PEARL (Rakelly and others 2019,
arXiv:1903.08254) and ProMP (Rothfuss and others 2019, arXiv:1810.06784) has these rewards, but pays for contacts and observes
more, as Gymnasium's; PEARL's ant observes the torso's place, too. PEARL's walkers and hoppers with random parameters have a
factor of inertia and one of friction for each axis, where here one is for all axes of an entry, and their factor of mass leaves
inertia alone.
"""

from metarl_cli.envs.mujoco.family import Config, MujocoFamily

Family = MujocoFamily

__all__ = ["Config", "Family", "MujocoFamily"]
