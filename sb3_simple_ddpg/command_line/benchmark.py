"""`simple-ddpg benchmark`. Not here: what is measured (`benchmark/benchmark.py`)."""

from pathlib import Path

from sb3_simple_ddpg.command_line import options


def benchmark(
    workloads: tuple[str, ...] = (),
    repeats: int | None = None,
    steps: int | None = None,
    threads: int | None = None,
    sbx_python: Path | None = None,
    compile_times: bool = True,
    quick: bool = False,
    out: Path | None = None,
    overwrite: bool = False,
) -> int:
    """
    Measure the speed of SimpleDDPG beside SB3's DDPG and SBX's DDPG, interleaved in one run.

    :param workloads: names; none for all: pendulum-64, pendulum-256, pendulum-400, pendulum-400-2-threads,
        halfcheetah-256, pendulum-8-envs, collect, predict
    :param repeats: number of counted repeats, at least 5; 7 without it
    :param steps: environment steps in each repeat; without it about two seconds of SB3's DDPG
    :param threads: of every workload, instead of its own number
    :param sbx_python: interpreter of an environment that holds SBX, where this one does not
    :param compile_times: compile with an empty cache, and again from what that left
    :param quick: everything small, to see that it runs; the numbers mean nothing
    :param out: folder to write; runs/benchmark-<date-time> without it
    :param overwrite: replace the files of an earlier benchmark in a folder that is not empty
    :return: exit status
    """
    from sb3_simple_ddpg.benchmark import benchmark as bench

    chosen = bench.choose_workloads(workloads, threads, quick)
    settings = bench.Settings(
        repeats=(2 if quick else 7) if repeats is None else repeats,
        steps=steps,
        target_s=0.1 if quick else 2.0,
        sbx_python=bench.find_sbx(sbx_python),
        compile_times=compile_times and not quick,
        quick=quick,
    )
    folder = options.choose_folder(out, "benchmark", overwrite)
    options.prepare_folder(folder, bench.FILES)
    bench.run_table(chosen, settings, folder, options.console())
    print(f"Everything lies in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0
