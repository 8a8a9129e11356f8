"""Processes of ``mlx.launch``: they meet or say who does not come, share a model or a queue, and end together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import mlx.core as mx
import numpy as np
import pytest
import soundfile
from ranks import JOB, PROGRAM, assert_refused, ended, free_ports, hosts, launch, start

from mlx_phi4 import Phi4Error, distributed
from mlx_phi4.checkpoint.digest import folder_digests
from mlx_phi4.commands.generate import command as generate
from mlx_phi4.commands.lora import command as lora
from mlx_phi4.commands.ranks import _is_noise
from mlx_phi4.ranks import star
from mlx_phi4.ranks.channel import Broken, Connection, Line
from mlx_phi4.ranks.meeting import Launch, NoAnswer, join_first, launched, receive_all, report_failure
from mlx_phi4.ranks.star import Ranks
from mlx_phi4.ranks.together import agreed_files, same_folder
from mlx_phi4.ranks.work import LATER, WorkQueue, share_out
from mlx_phi4.training.together import Together

MEDIA = Path(__file__).parents[1] / "examples" / "media"
FACTS = {"mlx_phi4": "1"}


@pytest.fixture
def meeting(monkeypatch):
    """A launch of so many ranks, by rank, with an address of its own."""
    monkeypatch.setenv("MLX_PHI4_MEETING_SECONDS", "10")

    def at(size):
        address = ("127.0.0.1", free_ports(1)[0])
        return [Launch(rank, size, address, ("127.0.0.1",) * size) for rank in range(size)]

    return at


@pytest.fixture
def together(meeting):
    """A function (work by rank) -> what it gave: each rank a thread of this process."""

    def run(*works, mode="data"):
        launches, found = meeting(len(works)), {}

        def rank_of(launch, work):
            ranks = Ranks(launch, mode)
            try:
                met = receive_all(launch, FACTS) if launch.rank == 0 else {0: join_first(launch, FACTS)}
                ranks.connect(met)
                found[launch.rank] = work(ranks)
            except Exception as error:
                found[launch.rank] = error
            finally:
                ranks.leave(0)

        threads = [threading.Thread(target=rank_of, args=each) for each in zip(launches, works, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return [found.get(rank) for rank in range(len(works))]

    return run


# -- meeting ----------------------------------------------------------------------------------------------------------


def test_ranks_meet_and_gather(together):
    assert (
        together(*[lambda ranks: (ranks.gather([ranks.rank, "é"]), ranks.gather(None))] * 3)
        == [([[0, "é"], [1, "é"], [2, "é"]], [None] * 3)] * 3
    )


def test_a_rank_that_does_not_come_is_named(meeting, monkeypatch):
    monkeypatch.setenv("MLX_PHI4_MEETING_SECONDS", "0.3")
    first, second, _ = meeting(3)
    with pytest.raises(Phi4Error, match=r"rank 1 \(127.0.0.1\) and rank 2 \(127.0.0.1\) do not answer"):
        receive_all(first, FACTS)
    with pytest.raises(NoAnswer, match=r"rank 0 .* does not answer on port"):
        join_first(second, FACTS)


def test_other_versions_are_refused_on_both_sides(meeting):
    first, second = meeting(2)
    refused = []
    thread = threading.Thread(target=lambda: refused.append(_raised(lambda: join_first(second, {"mlx_phi4": "2"}))))
    thread.start()
    line = "rank 1 (127.0.0.1) has mlx_phi4 2, rank 0 has 1"
    assert str(_raised(lambda: receive_all(first, FACTS))) == line
    thread.join(10)
    assert str(refused[0]) == line


def test_what_goes_wrong_before_they_meet_is_rank_0s_to_say(meeting):
    first, second = meeting(2)
    thread = threading.Thread(target=report_failure, args=(second, "a.png: no such file"))
    thread.start()
    assert str(_raised(lambda: receive_all(first, FACTS))) == "rank 1 (127.0.0.1): a.png: no such file"
    thread.join(10)


def test_strangers_are_not_let_in(meeting):
    """A port scanner, a browser, and one that only holds the line do not keep the ranks from meeting."""
    first, second = meeting(2)
    found = []
    thread = threading.Thread(target=lambda: found.append(receive_all(first, FACTS)))
    thread.start()
    for bytes_sent in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b""):
        for _ in range(50):
            try:
                with socket.create_connection(first.address, timeout=1) as stranger:
                    stranger.sendall(bytes_sent)
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
    connection = join_first(second, FACTS)
    thread.join(10)
    assert list(found[0]) == [1]
    found[0][1].close(), connection.close()


def _raised(work):
    with pytest.raises(Phi4Error) as caught:
        work()
    return caught.value


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"MLX_RANK": "0"}, "cannot be read"),
        ({"MLX_RANK": "5", "MLX_HOSTFILE": "two"}, "rank 5 of 2"),
        ({"MLX_RANK": "x", "MLX_HOSTFILE": "two"}, "cannot be read"),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "spoiled"}, "cannot be read"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "ring, jaccl"),
    ],
)
def test_a_launcher_that_is_not_understood_is_refused(environment, message, tmp_path):
    (tmp_path / "two").write_text('[["127.0.0.1:1"], ["127.0.0.1:2"]]')
    (tmp_path / "spoiled").write_text("{}")
    if "MLX_HOSTFILE" in environment:
        environment["MLX_HOSTFILE"] = str(tmp_path / environment["MLX_HOSTFILE"])
    with pytest.raises(Phi4Error, match=message):
        launched(environment)


def test_launches_of_ring_jaccl_and_one(tmp_path):
    (tmp_path / "two").write_text('[["10.0.0.1:5", "10.0.1.1:6"], ["10.0.0.2:7"]]')
    (tmp_path / "one").write_text("\n")
    (tmp_path / "rdma").write_text('[[null, "rdma_en2"], ["rdma_en2", null]]')
    ring = launched({"MLX_RANK": "1", "MLX_HOSTFILE": str(tmp_path / "two")})
    assert (ring.rank, ring.size, ring.address, ring.name(1)) == (1, 2, ("10.0.0.1", 5), "rank 1 (10.0.0.2)")
    jaccl = {"MLX_RANK": "0", "MLX_JACCL_COORDINATOR": "10.0.0.1:9", "MLX_IBV_DEVICES": str(tmp_path / "rdma")}
    assert (launched(jaccl).size, launched(jaccl).address) == (2, ("10.0.0.1", 9))
    assert launched({"MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "one")}) is None  # mlx.launch -n 1
    assert launched({}) is None


# -- messages ---------------------------------------------------------------------------------------------------------


def test_messages_are_plain_data_of_bounded_size():
    ours, theirs = map(Connection, socket.socketpair())
    ours.send({"do": "step", "name": "é"}, memoryview(bytes(range(256))))
    assert theirs.receive(5) == ({"do": "step", "name": "é"}, bytes(range(256)))
    for frame in (b"\xff" * 12, b"\0\0\0\2" + b"\0" * 8 + b"[]", b"\0\0\0\1" + b"\0" * 8 + b"{", b"\0"):
        one, other = socket.socketpair()
        one.sendall(frame)
        one.close()
        with pytest.raises(Broken):
            Connection(other).receive(5)


def test_one_that_is_silent_is_told_like_one_that_ended(monkeypatch):
    monkeypatch.setattr("mlx_phi4.ranks.channel.SILENT_RANK", 0.3)
    one, other = socket.socketpair()
    told = threading.Event()
    line = Line(Connection(one), lambda message, data: None, told.set)
    line.start()
    assert told.wait(5)
    line.close(), other.close()


# -- a queue of work --------------------------------------------------------------------------------------------------


def makespan(sizes, speeds, rows):
    """Seconds that ranks of these speeds take, each ``rows`` pieces at once, over those of an ideal split."""
    now, left, held = [0.0], len(sizes), [{} for _ in speeds]
    work = WorkQueue(sizes, len(speeds), clock=lambda: now[0])
    while left:
        for rank, speed in enumerate(speeds):
            while len(held[rank]) < rows and (index := work.take(rank)) not in (None, LATER):
                held[rank][index] = sizes[index]
            share = 0.02 * speed / max(len(held[rank]), 1)
            for index in list(held[rank]):
                held[rank][index] -= share
                if held[rank][index] <= 0:
                    del held[rank][index]
                    work.finish(rank, index)
                    left -= 1
        now[0] += 0.02
    return now[0] / (sum(sizes) / sum(speeds))


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("speeds", [(10, 2.5), (2.5, 10)])
def test_a_rank_of_a_quarter_of_the_speed_holds_nobody_up(rows, speeds):
    random = np.random.default_rng(1)
    for count in (12, 20, 40, 90):
        assert makespan([9] * count, speeds, rows) < 1.25
        assert makespan(random.integers(3, 30, count).tolist(), speeds, rows) < 1.25


def test_a_queue_gives_each_piece_once_and_knows_who_has_it():
    work = WorkQueue([5, None, 9, 1], 2)
    assert work.take(0) == 2 and work.take(1) == 0  # the largest first
    assert work.take(0) == LATER  # its speed is not known yet
    work.finish(0, 2)
    assert work.lose(1) == [0]
    assert work.take(0) == 3 and work.take(0) is None and work.take(1) is None


def test_all_ranks_work_and_rank_0_hears_of_it(together):
    def work(ranks):
        def do(order):
            for index in order:
                time.sleep(0.01)
                yield index, [index * index, ranks.rank]

        return dict(share_out(ranks, [1] * 30, do))

    first, *others = together(work, work, work)
    assert {index: square for index, (square, _) in first.items()} == {i: i * i for i in range(30)}
    assert {rank for _, rank in first.values()} == {0, 1, 2} and others == [{}, {}]


# -- the same model, the same files -----------------------------------------------------------------------------------


def test_other_models_and_other_files_are_refused(together, checkpoint, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(checkpoint(), other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # the same header, the same size
    (other / "model.safetensors").write_bytes(weights)
    assert folder_digests(other) != folder_digests(checkpoint())
    found = together(*[lambda ranks, folder=folder: same_folder(ranks, folder) for folder in (checkpoint(), other)])
    assert "model.safetensors differs" in str(found[0]) and isinstance(found[1], Phi4Error)
    marks = [[True, False], [False, False]]
    assert together(*[lambda ranks: agreed_files(ranks, "ab", [marks[ranks.rank]])] * 2) == [[[True, False]]] * 2
    found = together(*[lambda ranks: agreed_files(ranks, "ab"[ranks.rank :], [[True] * (2 - ranks.rank)])] * 2)
    assert all("see different files (2, 1)" in str(each) for each in found)


# -- commands ---------------------------------------------------------------------------------------------------------


def test_one_answer_of_two_ranks():
    media = ["--image", MEDIA / "sign.png", "--audio", MEDIA / "question.flac"]
    (code, out, err), second = launch("generate", "--model", "phi4-tiny", *media, "--temperature", "0.001")
    assert (code, out) == (0, "star\n") and err.startswith("vision-speech: prompt 467 tokens")
    assert second == (0, "", "")


def test_rows_of_a_led_model_get_what_they_get_alone(checkpoint):
    assert launch("rows", checkpoint(), program=JOB) == [(0, "", "")] * 2


def test_a_chat_under_the_launcher_itself():
    """It never passes on the end of its input, and spins when that has ended: its input is held open."""
    port = free_ports(1)[0]
    launcher = "import mlx._distributed_utils.launch as launch; launch.main()"
    command = [sys.executable, "-c", launcher, "-n", "2", "-p", str(port), "--", *PROGRAM, "chat"]
    talk = subprocess.Popen(
        [*command, "--model", "phi4-tiny", "--quiet"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    talk.stdin.write("What is the capital of France?\n/quit\n")
    talk.stdin.flush()
    try:
        assert talk.stdout.read().split() == ["Paris"] and talk.wait(30) == 0
    finally:
        talk.kill()
        talk.stdin.close(), talk.stdout.close()


def test_three_ranks_are_refused_with_the_reason():
    assert_refused(launch("generate", "--model", "phi4-tiny", "-p", "x", size=3), "3 ranks cannot share", "2 can")


def test_standard_input_is_refused(run_command, monkeypatch):
    for name, value in (hosts(2) | {"MLX_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    code, out, err = run_command(generate, "--model", "phi4-tiny", "-p", "-", stdin=b"x")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "standard input has no end" in err


@pytest.mark.parametrize("when", ["loading", "prefilling", "decoding"])
def test_a_rank_that_dies_ends_the_others(when):
    began = time.monotonic()
    ask = ["generate", "--model", "phi4-tiny", "-p", "What is the capital of France?", "--quiet"]
    (code, out, err), (killed, _, _) = launch("killed", when, *ask, program=JOB)
    assert (code, killed) == (2, -signal.SIGKILL) and out in ("", "Paris"), err
    assert err.splitlines() == ["error: rank 1 (127.0.0.1) is gone: it ended, or is not heard any more"]
    assert time.monotonic() - began < 60


def test_what_the_ring_writes_in_pieces_is_dropped_and_nothing_else():
    """Its threads write at once: a line may be any of the pieces of two of them."""
    for noise in (
        "[ring] Socket 7 failed with errno 104\n",
        " Socket 7 was closed by the peer\n",
        "Socket 3Socket 4 was closed by the peer was closed by the peer\n",
        "3 failed with errno 32\n",
        "Too many send/recv errors. Failing pending tasks...\n",
        "[ring] connection to a peer was lost\n",
        "Receiving from socket 5 made no progress\n",
    ):
        assert _is_noise(noise.encode()), noise
    for said in ("\n", "12\n", "Socket.gaierror: no such host\n", "error: rank 1 is gone\n", "Traceback (most recent"):
        assert not _is_noise(said.encode()), said


def test_a_rank_that_is_lost_does_not_break_into_the_interpreters_end():
    """Else it writes of an exception that was ignored in threading."""
    before = signal.signal(signal.SIGUSR1, star._end_here)
    try:
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGUSR1)
        star._ignore_lost_ranks()
        assert signal.getsignal(signal.SIGUSR1) is not star._end_here
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_files_of_a_rank_that_is_lost_are_left_to_the_next_run(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number in range(6):
        soundfile.write(f"in/{number}.wav", np.zeros(1600 * (number + 1)), 16_000)
    ask = ["transcribe", "in", "--model", checkpoint(), "-o", "out", "--temperatures", "0", "-m", "4"]
    (code, _, err), (killed, _, _) = launch("killed", "writing", *ask, program=JOB)
    lost = [line for line in err.splitlines() if "rank 1 (127.0.0.1) was lost" in line]
    assert (code, killed) == (1, -signal.SIGKILL) and len(lost) == 1
    assert len(list(Path("out").glob("*.txt"))) == 5 and not list(Path("out").glob(".*.partial"))
    assert [code for code, _, _ in launch(*ask)] == [0, 0]
    assert len(list(Path("out").glob("*.txt"))) == 6


def test_a_server_of_two_ranks_serves_its_clients():
    tests = Path(__file__).with_name("test_server.py")
    first, second = launch("serving", tests, program=JOB)
    assert first[0] == 0 and " passed" in first[1], first
    assert second[0] == 0, second


def test_one_module_decides_what_is_shared(monkeypatch):
    for mode in distributed.PARALLEL:
        assert distributed.join(mode).size == 1  # without a launcher
    with pytest.raises(Phi4Error, match="parallel is 'both'"):
        distributed.join("both")
    from mlx_phi4.commands import chat, evaluate, server, transcribe
    from mlx_phi4.commands import generate as generating

    usual = {generating: "tensor", chat: "tensor", server: "tensor", transcribe: "data", evaluate: "data"}
    for module, mode in usual.items():
        commands = module.main.commands.values() if isinstance(module.main, click.Group) else [module.main]
        for command in commands:
            (option,) = [each for each in command.params if each.name == "parallel"]
            assert option.default == mode
    assert ended(start([*PROGRAM, "generate", "--parallel", "data"]))[0][0] == 2 and os.environ  # nothing to share out


# -- training ---------------------------------------------------------------------------------------------------------


def test_training_on_ranks_gives_what_one_process_gives(tmp_path, run_command):
    lines = [
        {"prompt": f"Say {word}.", "completion": " ".join([word] * (1 + i % 3))} for i, word in enumerate("abcdefg")
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--data", tmp_path / "train.jsonl", "--batch-size", 5, "--learning-rate", 1e-3, "--rank", 4]
    options += ["--iters", 8, "--held-out", 0, "--grad-accumulation-steps", 2, "--quiet", "--no-plot"]
    ask = ["lora", "--train", "--model", "phi4-tiny", *options]
    for name, size, program in (("two", 2, PROGRAM), ("three", 3, (*JOB, "undigested"))):
        assert launch(*ask, "--adapter-path", tmp_path / name, size=size, program=program) == [(0, "", "")] * size
    assert run_command(lora, *ask[1:], "--adapter-path", tmp_path / "one")[0] == 0
    one, two, three = (mx.load(str(tmp_path / name / "adapter_model.safetensors")) for name in ("one", "two", "three"))
    for many in (two, three):
        assert max(abs(one[name] - many[name]).max().item() for name in one) < 1e-5
        assert any(abs(many[name]).max().item() > 1e-3 for name in many if "lora_B" in name)  # it did learn


def test_a_rank_that_dies_in_training_ends_the_others_and_leaves_nothing_half_written(tmp_path):
    lines = [json.dumps({"prompt": f"Say {word}.", "completion": word}) + "\n" for word in "abcd"]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    options = ["--data", tmp_path / "train.jsonl", "--adapter-path", tmp_path / "mine", "--held-out", 0, "--quiet"]
    ask = ["lora", "--train", "--model", "phi4-tiny", *options, "--batch-size", 4, "--iters", 4, "--no-plot"]
    (code, out, err), (killed, _, _) = launch("killed", "training", *ask, program=JOB)
    assert (code, killed, out) == (2, -signal.SIGKILL, ""), err
    assert err.splitlines() == ["error: rank 1 (127.0.0.1) is gone: it ended, or is not heard any more"]
    assert not list(tmp_path.glob("mine/*"))


def test_ranks_share_a_batch_without_repeats():
    batch = list(range(7))
    shares = []
    for rank in range(3):
        together = Together()
        together.ranks = Ranks(Launch(rank, 3, ("", 0), ()), "data")
        shares.append(together.share(batch))
        with pytest.raises(Phi4Error, match="a batch of 2 cannot be shared out to 3 ranks"):
            together.share([0, 1])
    assert sorted(unit for share in shares for unit in share) == batch


def test_weights_that_differ_between_ranks_end_a_run(together):
    def compare(ranks):
        here = Together()
        here.ranks, here._sharding = ranks, object()
        here.check_equal({"up": mx.full((2,), 1.0 + ranks.rank * 2**-20)})

    found = together(compare, compare)
    assert all("the weights of rank" in str(each) and "differ" in str(each) for each in found)
