"""GPUs as nvidia-smi tells them, and which worker gets which."""

from collections.abc import Sequence

import pytest

from dynosim_runtime.errors import LiveError
from dynosim_runtime.launch.gpus import Gpu, Runner, assign_gpus, parse_gpus, run_query

H100 = "{}, NVIDIA H100 80GB HBM3, 81559, {}, 550.54.15"


def smi(*free_mib: int) -> Runner:
    """An nvidia-smi of a machine whose GPUs have so much memory free."""
    text = "".join(H100.format(i, free) + "\n" for i, free in enumerate(free_mib))

    def run(command: Sequence[str]) -> str:
        assert command[0] == "nvidia-smi"
        return text

    return run


def without_smi(command: Sequence[str]) -> str:
    raise LiveError("nvidia-smi not found")


def indices(assigned: list[tuple[Gpu, ...]]) -> list[list[int]]:
    return [[gpu.index for gpu in gpus] for gpus in assigned]


def test_a_row_becomes_a_gpu() -> None:
    assert parse_gpus(H100.format(3, 81000) + "\n\n") == [
        Gpu(
            index=3,
            name="NVIDIA H100 80GB HBM3",
            memory_total_mib=81559,
            memory_free_mib=81000,
            driver="550.54.15",
        )
    ]


def test_memory_that_is_not_told_is_not_held_against_a_gpu() -> None:
    (gpu,) = parse_gpus("0, NVIDIA GB10, [N/A], [N/A], 580.95.05\n")
    assert gpu.memory_total_mib is None
    assert not gpu.lacks_memory(0.9)


@pytest.mark.parametrize("text", ["0, NVIDIA H100\n", "No devices were found\n", "x, a, 1, 1, 5\n"])
def test_an_answer_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(LiveError, match="nvidia-smi: cannot read"):
        parse_gpus(text)


def test_workers_get_neighbours() -> None:
    assigned = assign_gpus([2] * 3, 0.9, run=smi(*[81000] * 8))
    assert indices(assigned) == [[0, 1], [2, 3], [4, 5]]


def test_pools_of_different_width_get_neighbours_in_turn() -> None:
    assert indices(assign_gpus([1, 1, 4], 0.9, run=smi(*[81000] * 8))) == [[0], [1], [2, 3, 4, 5]]
    with pytest.raises(LiveError, match=r"plan needs 2 workers x TP 1 \+ 1 worker x TP 4 = 6 GPUs"):
        assign_gpus([1, 1, 4], 0.9, run=smi(*[81000] * 4))


def test_busy_gpus_are_passed_over() -> None:
    assert indices(assign_gpus([1, 1], 0.9, run=smi(81000, 100, 81000))) == [[0], [2]]


def test_only_visible_gpus_are_used_in_their_order() -> None:
    run = smi(*[81000] * 4)
    assert indices(assign_gpus([1, 1], 0.9, cuda_visible_devices="3, 1", run=run)) == [[3], [1]]


@pytest.mark.parametrize(
    ("run", "visible", "message"),
    [
        (without_smi, None, "4 workers x TP 2 = 8 GPUs, this machine has none: nvidia-smi not fou"),
        (smi(81000, 81000), None, "4 workers x TP 2 = 8 GPUs, this machine has 2; use --mock, or"),
        (smi(*[81000] * 8), "0,1", "= 8 GPUs, this machine has 2; "),
        (smi(*[81000] * 8), "", "= 8 GPUs, this machine has none; "),
        (smi(*[81000] * 8), "GPU-8f1", "has none: CUDA_VISIBLE_DEVICES=GPU-8f1: GPU-8f1 is no ind"),
        (
            smi(*[81000] * 7, 500),
            None,
            "has 7 with 90% of their memory free (GPU 7: 500 of 81559 MiB free); use --mock",
        ),
    ],
)
def test_too_few_gpus_are_refused_with_what_there_is(
    run: Runner, visible: str | None, message: str
) -> None:
    with pytest.raises(LiveError) as caught:
        assign_gpus([2] * 4, 0.9, cuda_visible_devices=visible, run=run)
    assert message in str(caught.value)
    assert "--engine vllm-cpu --model DIR" in str(caught.value)


def test_one_worker_is_not_called_workers() -> None:
    with pytest.raises(LiveError, match="1 worker x TP 1 = 1 GPU, this machine has none"):
        assign_gpus([1], 0.9, run=without_smi)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("no-such-program-here",), "no-such-program-here not found"),
        (("sh", "-c", "echo broken driver >&2; exit 9"), "sh: broken driver"),
        (("sh", "-c", "exit 9"), "sh: exit code 9"),
    ],
)
def test_a_query_that_fails_says_why(command: tuple[str, ...], message: str) -> None:
    with pytest.raises(LiveError, match=message):
        run_query(command)


def test_a_query_returns_its_output() -> None:
    assert run_query(("echo", "hello")) == "hello\n"


def test_one_more_worker_gets_none_of_those_that_others_have() -> None:
    assigned = assign_gpus([2], 0.9, taken=[0, 1, 3], run=smi(*[81000] * 6))
    assert indices(assigned) == [[2, 4]]


def test_where_all_are_taken_that_is_said_with_the_remedy() -> None:
    with pytest.raises(LiveError) as caught:
        assign_gpus([2], 0.9, taken=[0, 1], run=smi(*[81000] * 3))
    assert str(caught.value) == (
        "one more worker needs 2 GPUs, this machine has 1 GPU left "
        "(lower the controller's maximum, or its GPU budget)"
    )
    with pytest.raises(LiveError, match="needs 1 GPU, this machine has no GPU left "):
        assign_gpus([1], 0.9, taken=[0], run=smi(81000))
