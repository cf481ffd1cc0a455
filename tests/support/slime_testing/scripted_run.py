"""A stand-in for slime-train: the same files and events, no model, a second in all.

Usage: python scripted_run.py --dumps D [--behave NAME] --output-dir D --save D --save-hf D
--save-debug-rollout-data T, with ``prepare_dumps(D)`` before. The "engine" is a child process; a
dead or stopped one is replaced, unless NAME is ``blind`` (nobody looks), ``forgetful`` (a lost
engine costs a sample) or ``greedy`` (it is trained on twice).
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from slime_core.processes.events import Events

NUM_ITERATIONS = 4
PHASE_S = 0.05
OTHER_SAMPLES = ("forgetful", "greedy")


class Engine:
    """A child that does nothing, and the events about it."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.lost = 0
        self.start()

    def start(self) -> None:
        owner = os.getpid()
        loop = f"import os, time\nwhile os.getppid() == {owner}: time.sleep(0.05)"
        self.child = subprocess.Popen([sys.executable, "-I", "-S", "-c", loop])
        self.events.process("engine", "engine 0", self.child.pid)

    def check(self) -> None:
        stopped = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if self.child.poll() is None and stopped != "T":
            return
        how = "hang" if stopped == "T" else "exit"
        self.events.lost("engine", "engine 0", self.child.pid, how=how, seconds=0.1)
        self.end()
        self.start()
        self.lost += 1
        self.events.recovered("engine", "engine 0", seconds=0.05)

    def end(self) -> None:
        self.child.kill()
        self.child.wait(timeout=10)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--behave", default="well")
    parser.add_argument("--use-fault-tolerance", action="store_true")
    parser.add_argument("--save-interval", type=int)
    for name in ("--dumps", "--output-dir", "--save", "--save-hf", "--save-debug-rollout-data"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    events = Events(Path(options.output_dir) / "events.jsonl")
    events.process("driver", "driver")
    engine = Engine(events)
    try:
        run(options, events, engine)
    finally:
        engine.end()


def run(options: argparse.Namespace, events: Events, engine: Engine) -> None:
    save, total = Path(options.save), 0
    save.mkdir(parents=True, exist_ok=True)
    done = sorted(save.glob("*.done"))
    if done:
        total = int(done[-1].read_text())
    for iteration in range(len(done), NUM_ITERATIONS):
        for name in ("generate", "train", "save", "publish"):
            events.phase(name, iteration, begin=True)
            time.sleep(PHASE_S)
            if options.behave != "blind":
                engine.check()
            elif engine.child.poll() is not None:
                events.gave_up("the engine is gone")
                sys.exit(1)
            if name == "generate":
                dump(options, iteration, engine.lost)
            if name == "save":
                total = total * 31 + iteration + 1
                partial = save / "partial"
                partial.write_text(str(total))
                partial.rename(save / f"{iteration:04}.done")
            events.phase(name, iteration, begin=False)
    hf = Path(options.save_hf)
    hf.mkdir(parents=True, exist_ok=True)
    (hf / "model.safetensors").write_text(str(total))


def dump(options: argparse.Namespace, iteration: int, lost: int) -> None:
    which = options.behave if lost and options.behave in OTHER_SAMPLES else "well"
    path = Path(options.save_debug_rollout_data.format(rollout_id=iteration))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    shutil.copy(Path(options.dumps) / f"{which}-{iteration}.pt", partial)
    partial.rename(path)


def prepare_dumps(directory: Path) -> None:
    """What the script dumps: made beforehand, as importing torch takes longer than all else."""
    import torch

    for iteration in range(NUM_ITERATIONS):
        both = [
            {"group_index": iteration, "index": 2 * iteration + i, "prompt": "1+1", "tokens": [i]}
            for i in range(2)
        ]
        kinds = {"well": both, "forgetful": both[:1], "greedy": [*both, both[0]]}
        for which, samples in kinds.items():
            content = {"rollout_id": iteration, "groups": [{"samples": samples}]}
            torch.save(content, directory / f"{which}-{iteration}.pt")


if __name__ == "__main__":
    main()
