"""One competitor of the benchmark, in a process of its own, and the pipe to it: a line of JSON there, one back.

Not here: what is compared, in which order and how often (`benchmark.py`). At the top stands the standard library alone:
SBX's environment need not hold this package.
"""

import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from statistics import median
from typing import Any

EAGER, COMPILED, SB3, SBX, FLOOR = "SimpleDDPG", "SimpleDDPG compiled", "SB3 DDPG", "SBX DDPG", "floor"
#: SB3's with the other library for products, as a setting of PyTorch's gives it to a whole process.
SB3_ONEDNN = "SB3 DDPG by oneDNN"


class Competitor:
    """
    One algorithm on one workload; each public method is a command, and its result the answer.

    :param job: the fields of `benchmark.Workload`, and `kind`: EAGER, COMPILED, SB3, SB3_ONEDNN, SBX or
        FLOOR
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.train_seconds: list[float] = []
        self.gradient_steps = 0
        if job["kind"] == SBX:
            _pin(job["threads"])  # XLA starts as many threads as it finds cores

    def prepare(self) -> dict[str, Any]:
        """
        Build everything and warm up: the random steps, then updates, with the compile in one of them.

        :return: seconds inside `train` beyond those of usual calls (None without updates), versions, and what
            SimpleDDPG says of the library that multiplies
        :raises RuntimeError: when nothing was compiled that should have been, or oneDNN does not multiply in float32
        """
        import numpy as np
        import torch as th

        job = self.job
        th.set_num_threads(job["threads"])
        if job["kind"] == SB3_ONEDNN:
            th.set_float32_matmul_precision("medium")
            left, right = th.randn(256, 256), th.randn(256, 256)
            if float((left @ right - left.double() @ right.double()).abs().max()) > 1e-3:
                raise RuntimeError("the setting that gives oneDNN to a whole process rounds to bfloat16 here")
        if job["kind"] == FLOOR and job["gradient_steps"] != 0:
            rows, widths = job["batch_size"], job["net_arch"]
            self.products = [_faster_product(rows, *pair) for pair in itertools.pairwise(widths)]
        else:
            import gymnasium as gym
            from stable_baselines3.common.env_util import make_vec_env

            self.env: Any
            if job["kind"] == FLOOR or job["n_envs"] > 1:
                self.env = make_vec_env(lambda: gym.make(job["env_id"]), job["n_envs"], seed=0)
                self.actions = np.array([self.env.action_space.sample() for _ in range(job["n_envs"])])
                self.env.reset()
            else:  # as users pass one; each library wraps it
                self.env = gym.make(job["env_id"])
        if job["kind"] != FLOOR:
            self.model = self._build()
            if job["filled"]:
                _fill(self.model.replay_buffer)
            train = self.model.train

            def timed(gradient_steps: int, batch_size: int) -> None:
                start = time.perf_counter()
                train(gradient_steps=gradient_steps, batch_size=batch_size)
                self.train_seconds.append(time.perf_counter() - start)
                self.gradient_steps += gradient_steps

            self.model.train = timed
            self.model.learn(job["learning_starts"] + job["warm_up"] * job["n_envs"])
        else:
            self.measure(job["warm_up"])
        _pin(job["threads"])
        if job["kind"] == COMPILED:
            compiled = self.model._compiled
            if compiled is None or compiled.failure is not None:  # what follows would be the plain path's speed
                raise RuntimeError(f"nothing was compiled: {'no update' if compiled is None else compiled.failure}")
        seconds = self.train_seconds
        compile_seconds = sum(seconds) - len(seconds) * median(seconds) if seconds else None
        said = self._said_of_products() if job["kind"] in (EAGER, COMPILED) else ""
        return {"compile_s": compile_seconds, "versions": _versions(job["kind"]), "products": said}

    def measure(self, amount: int) -> dict[str, Any]:
        """
        One repeat.

        :param amount: number of environment steps, of calls of `predict`, or of updates whose products the floor runs
        :return: seconds and what was done in them: `count` of the above, `train_s` and `gradient_steps` of the updates
        """
        self.train_seconds, self.gradient_steps = [], 0
        n_envs, count = self.job["n_envs"], amount
        start = time.perf_counter()
        if self.job["kind"] == FLOOR and self.job["gradient_steps"] != 0:
            for _ in range(amount):
                for product in self.products:
                    for _ in range(10):
                        product()
        elif self.job["kind"] == FLOOR:
            rounds = -(-amount // n_envs)
            for _ in range(rounds):
                self.env.step(self.actions)
            count = rounds * n_envs
        elif self.job["measures"] == "predict":
            observation = self.model._last_obs[0]
            for _ in range(amount):
                self.model.predict(observation, deterministic=True)
        else:
            before = self.model.num_timesteps
            self.model.learn(amount, reset_num_timesteps=False)
            count = int(self.model.num_timesteps - before)
        seconds = time.perf_counter() - start
        train_s = sum(self.train_seconds)
        return {"s": seconds, "count": count, "train_s": train_s, "gradient_steps": self.gradient_steps}

    def memory(self) -> dict[str, Any]:
        """
        :return: largest resident memory of this process so far, in MiB
        """
        try:  # getrusage begins with the size of the process that started this one
            with open("/proc/self/status") as status:
                line = next(line for line in status if line.startswith("VmHWM"))
            return {"peak_mib": int(line.split()[1]) / 1024}
        except OSError:  # no Linux
            import resource

            unit = 2**20 if sys.platform == "darwin" else 2**10
            return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}

    def _said_of_products(self) -> str:
        products = importlib.import_module("sb3_simple_ddpg.speed.products")
        said: str = products.prepare(self.model, [], compiled=self.job["kind"] == COMPILED)[1]
        return said

    def _build(self) -> Any:  # noqa: ANN401 - one of three libraries' classes
        import numpy as np
        from stable_baselines3.common.noise import NormalActionNoise

        job, kind = self.job, self.job["kind"]
        arguments = {name: job[name] for name in ("batch_size", "buffer_size", "gradient_steps", "learning_starts")}
        policy_kwargs = {"net_arch": list(job["net_arch"])}
        arguments |= {"learning_rate": 1e-3, "policy_kwargs": policy_kwargs, "seed": 0, "device": "cpu"}
        zeros = np.zeros(self.env.action_space.shape or (1,))
        noise = NormalActionNoise(zeros, zeros + 0.1)
        if kind in (SB3, SB3_ONEDNN):
            from stable_baselines3 import DDPG

            return DDPG("MlpPolicy", self.env, action_noise=noise, **arguments)
        if kind == SBX:
            algorithm = importlib.import_module("sbx").DDPG
            return algorithm("MlpPolicy", self.env, qf_learning_rate=1e-3, action_noise=noise, **arguments)
        algorithm = importlib.import_module("sb3_simple_ddpg").SimpleDDPG
        return algorithm("MlpPolicy", self.env, action_noise=0.1, compile_updates=kind == COMPILED, **arguments)


class WorkerProcess:
    """
    A competitor in a process of its own.

    :param python: interpreter whose environment holds the competitor
    :param job: what `Competitor` takes
    :param cache: folder for what PyTorch compiles; None: PyTorch's own
    """

    def __init__(self, python: str, job: dict[str, Any], cache: str | None = None) -> None:
        # run_path leaves sys.path alone: this package's modules must not stand in for others' of the same name.
        source = f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"
        environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
        if job["kind"] == SBX:
            flags = f"--xla_cpu_multi_thread_eigen={str(job['threads'] > 1).lower()}"
            flags += f" intra_op_parallelism_threads={job['threads']}"
            environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        if cache is not None:
            environment |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TMPDIR": cache}  # where PyTorch keeps prepared headers
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `close` closes it
        self._process = subprocess.Popen(
            [python, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        self._send(job)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON holds
        """
        :param command: a method of `Competitor`
        :param arguments: its arguments
        :return: its result
        :raises RuntimeError: with the reason, where there is none
        """
        assert self._process.stdout is not None
        self._send([command, arguments])
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines() or ["no message"]
            raise RuntimeError(f"its process ended: {lines[-1]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `ask` will find no answer, and say why


def _faster_product(rows: int, inner: int, columns: int) -> Callable[[], Any]:
    """(B, h1) times (h1, h2) by MKL or by oneDNN, both within PyTorch: whichever is faster here, in float32."""
    import torch as th

    left, right, out = th.randn(rows, inner), th.randn(inner, columns), th.empty(rows, columns)
    ways = [lambda: th.mm(left, right, out=out)]
    if hasattr(th.ops.mkldnn, "_linear_pointwise"):
        weight = right.t().contiguous()
        linear = th.ops.mkldnn._linear_pointwise
        ways.append(lambda: linear(left, weight, None, "none", [], ""))

    def seconds(way: Callable[[], Any]) -> float:
        start = time.perf_counter()
        for _ in range(5):
            way()
        return time.perf_counter() - start

    turns = [[seconds(way) for way in ways] for _ in range(21)]
    return min(zip(map(median, zip(*turns, strict=True)), ways, strict=True), key=lambda each: each[0])[1]


def _fill(replay_buffer: Any) -> None:  # noqa: ANN401 - SB3's
    """Random transitions throughout: pages that were never written all lie in one place of the cache."""
    import numpy as np

    random = np.random.default_rng(0)
    for name in ("observations", "next_observations", "actions", "rewards"):
        array = getattr(replay_buffer, name)
        array[...] = random.uniform(-1, 1, size=array.shape)
    replay_buffer.dones[...] = replay_buffer.timeouts[...] = 0
    replay_buffer.full = True


def _pin(threads: int) -> None:
    """Keep every thread of this process on as many cores as it may use threads, where the system can (Linux)."""
    if hasattr(os, "sched_setaffinity") and os.path.isdir("/proc/self/task"):
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), cores)


def _versions(kind: str) -> dict[str, str]:
    # SBX runs without our package; where it is started in our checkout, metadata of ours may lie about.
    ours = () if kind == SBX else ("sb3-simple-ddpg",)
    names = (*ours, "stable-baselines3", "torch", "gymnasium", "numpy", "mujoco", "sbx-rl", "jax")
    found = [name for name in names if next(iter(metadata.distributions(name=name)), None)]
    return {"python": sys.version.split()[0], **{name: metadata.version(name) for name in found}}


def main() -> None:
    """Read the job, then commands, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    competitor = Competitor(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = getattr(competitor, name)(**arguments)
        except Exception as error:  # the other side decides what it means
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
