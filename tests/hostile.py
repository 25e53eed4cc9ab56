"""Hostile texts that several tests try."""

# eleven lines that stand for 9 ** 12 values
BOMB = "x0: &x0 [a,a,a,a,a,a,a,a,a]\n" + "".join(f"x{n}: &x{n} [{','.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGED = "x0: &x0 {a: 1}\n" + "".join(f"x{n}: &x{n} {{<<: [{','.join([f'*x{n - 1}'] * 9)}]}}\n" for n in range(1, 12))

HANDLER = "version: 1, root: {handlers: [x]}, handlers: {x: "
HYDRA = {  # experiments of a stranger's folder, of which Hydra, or logging, would build what they name
    "callback": "hydra: {callbacks: {x: {_target_: shutil.copyfile, src: SRC, dst: DST}}}",
    "callback of a package": "hydra: {callbacks: {x: {_target_: metarl_cli.runs.files.write_whole, path: DST, content: a}}}",
    "callback behind a reference": "evil: {x: {_target_: shutil.copyfile, src: SRC, dst: DST}}\nhydra: {callbacks: '${evil}'}",
    "callback made by a resolver": "hydra: {callbacks: {x: '${oc.create:{_target_:shutil.copyfile,src:SRC,dst:DST}}'}}",
    "callback made later": "hydra: {callbacks: {x: '${oc.create:{_target_:shutil.copyfile,src:${hydra:runtime.cwd}}}'}}",
    "target behind a reference": "evil: shutil.copyfile\nhydra: {callbacks: {x: {_target_: '${evil}', src: SRC, dst: DST}}}",
    "target within a target": (
        "hydra: {callbacks: {x: {_target_: hydra.experimental.callbacks.LogJobReturnCallback, y: {_target_: shutil.copyfile}}}}"
    ),
    "part in a list": "hydra: {callbacks: {x: [{_target_: shutil.copyfile}]}}",
    "instantiation of Hydra's": "hydra: {callbacks: {x: {_target_: hydra.utils.get_method, path: os.system}}}",
    "launcher": "hydra: {launcher: {_target_: subprocess.Popen}}",
    "sweeper": "hydra: {sweeper: {_target_: subprocess.Popen}}",
    "log file": f"hydra: {{job_logging: {{{HANDLER}{{class: logging.FileHandler, filename: DST}}}}}}}}",
    "log file of Hydra's": f"hydra: {{hydra_logging: {{{HANDLER}{{class: logging.FileHandler, filename: DST}}}}}}}}",
    "handler of its own": f"hydra: {{job_logging: {{{HANDLER}{{'()': shutil.copyfile, src: SRC, dst: DST}}}}}}}}",
    "formatter of its own": "hydra: {job_logging: {version: 1, root: {}, formatters: {x: {(): os.system}}}}",
    "stream of a module": f"hydra: {{job_logging: {{{HANDLER}{{class: logging.StreamHandler, stream: 'ext://evil.x'}}}}}}}}",
    "another handler": f"hydra: {{job_logging: {{{HANDLER}{{class: logging.handlers.MemoryHandler, capacity: 1}}}}}}}}",
    "stream behind a reference": (
        f"evil: ext://evil.x\nhydra: {{job_logging: {{{HANDLER}{{class: logging.StreamHandler, stream: '${{evil}}'}}}}}}}}"
    ),
    "environment variables": "hydra: {job: {env_set: {LD_PRELOAD: DST}}}",
}
