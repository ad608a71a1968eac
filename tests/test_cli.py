"""The command as a user meets it: every answer to bad input is one line and status 2, and nothing is left behind."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minitransformer import cli, tasks

SMALL = ["--set=d_model=16", "--set=d_ff=32", "--set=heads=2", "--set=layers=1", "--set=batch_size=8", "--set=steps=4"]

LESSONS = Path(__file__).parent.parent / "lessons"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, and test on few sequences."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "TEST_SEQUENCES", 32)
    return tmp_path


@pytest.fixture
def call(capsys, backend):
    """Run the command in this process; return its status, what it printed and what it complained."""

    def run(*arguments):
        words = [str(a) for a in arguments]
        if backend == "cupy" and not {"--backend", "bench", "lessons", "figures", "--help"} & set(words):
            words += ["--backend", "cupy"]
        try:
            status = cli.main(words)
        except SystemExit as leaving:  # argparse's way
            status = leaving.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def shell(*arguments, **options):
    command = [sys.executable, "-W", "error", "-m", "minitransformer.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_the_command_alone_trains_reversal_and_leaves_a_run(call, elsewhere):
    status, out, _ = call(*SMALL)
    assert status == 0
    run = elsewhere / "runs" / "reversal-001"
    for part in (
        "config.json",
        "tokenizer.json",
        "metrics.jsonl",
        "result.json",
        "checkpoint/step-00000004/model.safetensors",
    ):
        assert (run / part).is_file(), part
    for figure in ("loss", "cross_attention", "cross_attention_mean"):
        for ending in ("png", "svg", "json"):
            assert (run / "figures" / f"{figure}.{ending}").stat().st_size > 100
    assert "exact match on 32 held-out sequences" in out and "0 1 2 3 4 5 6 7 → " in out and "runs/reversal-001" in out
    result = json.loads((run / "result.json").read_text())
    assert {"exact_match", "loss", "steps", "seconds"} <= set(result)
    assert result["optimizer_bytes"] == 2 * result["parameter_bytes"] > 1000
    kilobytes = result["parameter_bytes"] / 1000
    assert f"parameters: {kilobytes:,.1f} kB   state of the optimizer: {2 * kilobytes:,.1f} kB" in out
    assert call(*SMALL)[0] == 0 and (elsewhere / "runs" / "reversal-002").is_dir()


def test_steps_left_out_are_told_and_do_not_disturb_the_loss_curve(call, elsewhere):
    """Hardly anything is learned at this rate, and so about one loss in six lies a deviation above the others."""
    words = ["--set=spike=1", "--set=learning_rate=1e-6", "--set=log_every=1", *SMALL[:-1], "--set=steps=40"]
    status, out, err = call("--out", "r", *words)
    assert status == 0, err
    lines = [json.loads(line) for line in (elsewhere / "r/metrics.jsonl").read_text().splitlines()]
    left_out = [line for line in lines if "left_out" in line]
    assert left_out and f"steps left out, as their loss leapt: {len(left_out)} " in out
    assert set(left_out[0]) == {"step", "loss", "leap", "left_out", "growth"} and left_out[0]["step"] > 20
    assert json.loads((elsewhere / "r/figures/loss.json").read_text())["steps"] == list(range(1, 41))


def test_json_is_one_object_and_nothing_else(call):
    status, out, _ = call("train", "numbers", "--json", "--out", "n", "--set=limit=30", *SMALL)
    assert status == 0 and json.loads(out)["task"] == "numbers" and out.count("\n") == 1
    status, out, _ = call("translate", "--model", "n", "--json", "twenty-one", "two")
    assert [pair[0] for pair in json.loads(out)["translations"]] == ["twenty-one", "two"]
    status, out, _ = call("attend", "--model", "n", "--json", "twenty-one")
    assert json.loads(out)["columns"] == ["twenty", "one"]
    status, out, _ = call("gradcheck", "--json", "layer_norm")
    assert json.loads(out)["failed"] == 0 and status == 0


def test_progress_goes_to_the_error_stream_in_plain_lines(call):
    _, out, err = call("--set=log_every=2", *SMALL)
    assert re.fullmatch(r"(step +\d+/4  loss \d\.\d{4} nats/token  [\d,]+ tokens/s  \d+:\d\d left\n){2}", err)
    assert "tokens/s" not in out


def test_on_a_terminal_one_line_is_rewritten():
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "minitransformer.cli", "train", "numbers", "--set=log_every=1", *SMALL],
        stdout=subprocess.DEVNULL, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    seen = b""
    try:
        while chunk := os.read(leader, 4096):
            seen += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    assert process.wait() == 0 and seen.count(b"\r\x1b[K") == 4 and seen.count(b"\n") == 1


@pytest.fixture
def numbers(call):
    call("train", "numbers", "--out", "n", "--set=limit=30", *SMALL)
    return "n"


def test_translate_reads_standard_input(numbers):
    done = shell("translate", "--model", "n", input="two\n\n twenty-one \n")
    assert done.returncode == 0 and done.stdout.count("\n") == 2
    assert shell("translate", "--model", "n", "two", "twenty-one").stdout == done.stdout


def test_attend_draws_any_layer_and_head_with_the_tokens_as_labels(numbers, call, elsewhere):
    for options, name in (
        ([], "attend-cross"), (["--layer", 1], "attend-cross-layer1"), (["--head", 2], "attend-cross-head2"),
        (["--layer", 1, "--head", 2], "attend-cross-layer1-head2"), (["--kind", "encoder"], "attend-encoder"),
        (["--kind", "decoder", "--out", "elsewhere"], "attend-decoder"),
    ):  # fmt: skip
        status, out, _ = call("attend", "--model", "n", "twenty-one", "einundzwanzig", *options)
        folder = elsewhere / ("elsewhere" if "--out" in options else "n/figures")
        values = json.loads((folder / f"{name}.json").read_text())
        assert status == 0 and (folder / f"{name}.png").exists() and name in out
        wanted = {
            "cross": ["twenty", "one"],
            "encoder": ["twenty", "one"],
            "decoder": ["<bos>", "ein", "und", "zwanzig"],
        }
        assert values["columns"] == wanted[name.split("-")[1]]
    values = json.loads((elsewhere / "n/figures/attend-cross.json").read_text())
    assert values["rows"] == ["ein", "und", "zwanzig", "<eos>"]


@pytest.fixture
def language(call, elsewhere):
    (elsewhere / "t.txt").write_text("the cat sat on the mat. " * 60)
    options = ["--set=max_length=16", "--set=tokens=char", *SMALL]
    assert call("train", "lm", "--text", "t.txt", "--out", "l", *options)[0] == 0
    return "l"


def test_a_language_model_is_trained_and_writes(language, call):
    status, out, _ = call("generate", "--model", "l", "--prompt", "the ", "--tokens", 5)
    assert status == 0 and out.startswith("the ")
    assert call("generate", "--model", "l", "--prompt", "the ", "--tokens", 5)[1] == out  # seed 0 each time
    assert call("generate", "--model", "l", "--prompt", "the ", "--tokens", 5, "--seed", 1)[1] != out
    assert call("attend", "--model", "l", "the cat")[0] == 0


def test_several_prompts_are_continued_at_once(language, call):
    prompts = ["the cat ", "a", "on the mat. the"]
    each = [call("generate", "--model", "l", "--temperature", 0, "--tokens", 6, "--prompt", p)[1] for p in prompts]
    repeated = [word for p in prompts for word in ("--prompt", p)]
    status, out, _ = call("generate", "--model", "l", "--temperature", 0, "--tokens", 6, *repeated)
    assert status == 0 and out == "".join(each)
    lines = "\n\n".join(prompts)
    assert shell("generate", "--model", "l", "--temperature", 0, "--tokens", 6, input=lines).stdout == out
    _, out, _ = call("generate", "--model", "l", "--temperature", 0, "--tokens", 6, "--json", *repeated)
    assert json.loads(out)["texts"] == [text.removesuffix("\n") for text in each]


def test_generate_stops_penalises_and_keeps_a_nucleus(language, call):
    def write(*options):
        status, out, err = call("generate", "--model", "l", "--prompt", "the cat", "--tokens", 12, "--json", *options)
        assert status == 0, err
        return json.loads(out)["text"]

    free = write("--seed", 3)
    stop = free[10:12]  # two characters, and so two tokens
    assert write("--seed", 3, "--stop", stop) == "the cat" + free[7:].split(stop)[0]
    assert write("--seed", 3, "--top-p", 1e-6) == write("--temperature", 0) != free
    assert write("--temperature", 0, "--repetition-penalty", 9) != write("--temperature", 0)


def test_translate_searches_with_beams(numbers, call):
    greedy, one, four = (
        call("translate", "--model", "n", "twenty-one", "two", *options)
        for options in ([], ["--beams", 1], ["--beams", 4, "--length-penalty", -3])
    )
    assert greedy == one and four[0] == 0 and four[1].count("\n") == 2
    shorter = [len(a.split()) <= len(b.split()) for a, b in zip(four[1].splitlines(), one[1].splitlines(), strict=True)]
    assert all(shorter)


def test_generate_searches_with_beams_and_reads_in_chunks(language, call):
    def write(*options):
        status, out, err = call("generate", "--model", "l", "--prompt", "the cat", "--tokens", 9, "--json", *options)
        assert status == 0, err
        return json.loads(out)["text"]

    greedy, two = write("--temperature", 0), write("--beams", 2, "--length-penalty", 0.5)
    assert write("--beams", 1, "--temperature", 0) == greedy == write("--temperature", 0, "--chunk", 2)
    assert two.startswith("the cat") and write("--beams", 2, "--repetition-penalty", 50) != two
    stop = two[9:11]
    ended = write("--beams", 1, "--temperature", 0, "--stop", greedy[9:11])
    assert ended == "the cat" + greedy[7:].split(greedy[9:11])[0]
    assert stop not in write("--beams", 2, "--length-penalty", 0.5, "--stop", stop)[7:]
    assert write("--chunk", 3, "--seed", 5) == write("--seed", 5) != greedy


def test_translate_draws_and_penalises(numbers, call):
    def write(*options):
        status, out, err = call("translate", "--model", "n", "twenty-one", "two", *options)
        assert status == 0, err
        return out

    greedy, drawn = write(), write("--temperature", 1, "--seed", 2)
    assert drawn == write("--temperature", 1, "--seed", 2) != greedy
    assert write("--temperature", 1, "--top-k", 1) == write("--temperature", 1, "--top-p", 1e-6) == greedy
    assert write("--repetition-penalty", 50) != greedy
    assert write("--beams", 3, "--repetition-penalty", 50) != write("--beams", 3)


def test_ctrl_c_then_resume(elsewhere):
    options = ["--set=steps=300", "--set=log_every=1", *SMALL[:-1]]
    command = [sys.executable, "-m", "minitransformer.cli", "--out", "r", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while "step" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert re.search(r"stopped after step \d+ of 300; .* go on with: minitransformer train --resume r\n$", rest)
    assert "Traceback" not in rest
    done = shell("train", "--resume", "r", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["steps"] == 300


@pytest.mark.skipif("config.where == 'numpy'", reason="for --backend cupy")
@pytest.mark.parametrize("first, then", [("numpy", "cupy"), ("cupy", "numpy")])
def test_a_run_goes_on_on_another_backend(first, then, call, elsewhere):
    """Its 4 steps are cut to 2 by hand; config.json says where it ran last."""
    status, _, err = call("--out", "a", "--backend", first, "--set=checkpoint_every=2", *SMALL)
    assert status == 0, err
    last = elsewhere / "a/checkpoint/step-00000004"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    assert call("train", "--resume", "a", "--backend", then)[0] == 0 and last.exists()
    assert json.loads((elsewhere / "a/config.json").read_text())["backend"] == then


def test_a_run_killed_before_its_first_checkpoint_can_be_resumed(elsewhere, call):
    call("--out", "a", *SMALL)
    call("--out", "b", *SMALL)
    for step in (elsewhere / "b" / "checkpoint").iterdir():
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    (elsewhere / "b" / "result.json").unlink()
    assert call("train", "--resume", "b")[0] == 0
    a, b = (elsewhere / run / "checkpoint/step-00000004/model.safetensors" for run in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_gradcheck_prints_a_row_each_and_fails_with_status_1(call, monkeypatch):
    status, out, _ = call("gradcheck", "norm")
    rows = [line.split() for line in out.splitlines()[1:-1]]
    assert status == 0 and {"layer_norm", "rms_norm", "LayerNorm", "RMSNorm"} <= {row[0] for row in rows}
    assert all(row[-1] == "ok" and float(row[-2]) < 1e-5 and float(row[-3]) < 1e-7 for row in rows)
    assert out.splitlines()[0].split() == ["name", "points", "1st", "order", "2nd", "order", "verdict"]

    from minitransformer import gradcases

    f, arrays, options = gradcases.OPS["exp"](__import__("numpy").random.default_rng(0))
    monkeypatch.setitem(gradcases.OPS, "exp", lambda rng: (lambda x: f(x) + x.detach(), arrays, options))
    status, out, _ = call("gradcheck", "exp")
    assert status == 1 and "FAILED: derivative of order 1" in out and out.endswith("1 failed\n")


def cheaper_attention():
    """Return FIELD=VALUE of every row of the README's table "Cheaper attention"."""
    section = (LESSONS.parent / "README.md").read_text(encoding="utf-8").split("## Cheaper attention\n")[1]
    found, field = [], ""
    for row in section.split("\n\n")[1].splitlines()[2:]:
        for word in re.findall(r"`([^`]+)`", row.split("|")[2]):
            if word == "tie_embeddings":  # named without a value
                found += [f"{word}={value}" for value in ("none", "target", "all")]
            elif "=" in word:
                field = word.split("=")[0]
                found.append(word)
            else:
                found.append(f"{field}={word}")
    return found


@pytest.mark.slow
@pytest.mark.skipif("config.where != 'numpy'", reason="the fields are the same on both backends")
@pytest.mark.parametrize("setting", cheaper_attention())
@pytest.mark.parametrize("task", ["lm", "translate"])
def test_each_field_of_the_readmes_table_is_enough_alone(task, setting, call, elsewhere):
    (elsewhere / "t.txt").write_text("the cat sat on the mat. " * 40)
    (elsewhere / "p.tsv").write_text("".join(f"{i}\t{i}{i}\n" for i in range(40)))
    file = ["--text", "t.txt"] if task == "lm" else ["--pairs", "p.tsv"]
    words = [*SMALL[:-1], "--set=steps=2", "--set=tokens=char", "--set=max_length=16", "--set=workers=1"]
    status, out, err = call("train", task, *file, "--out", "r", *words, f"--set={setting}")
    assert status == 0, err
    field, value = setting.split("=")
    assert json.loads((elsewhere / "r/config.json").read_text())[field] == cli._value(value)


def test_the_readmes_table_is_read_whole():
    assert {"kv_heads=1", "positions=relative", "attention=linear", "activation=swiglu"} <= set(cheaper_attention())


def write_bad_files(folder):
    (folder / "empty.tsv").write_text("")
    (folder / "no_tab.tsv").write_text("one\teins\ntwo zwei\n")
    (folder / "latin1.tsv").write_bytes("über\tover\nfünf\tfive\n".encode("latin-1"))
    (folder / "one.tsv").write_text("a\tb\n")
    (folder / "short.txt").write_text("abc")
    (folder / "good.tsv").write_text("".join(f"s{i}\tt{i}\n" for i in range(20)))
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("x")


CASES = {
    "an unknown task": (["train", "chess"], "a task is one of reversal, numbers, translate, lm; got 'chess'"),
    "no file": (["train", "translate"], "--pairs FILE"),
    "a missing file": (["train", "translate", "--pairs", "none.tsv"], "does not exist"),
    "an empty file": (["train", "translate", "--pairs", "empty.tsv"], "is empty"),
    "a line without TAB": (["train", "translate", "--pairs", "no_tab.tsv"], "line 2 has 0 TABs"),
    "not UTF-8": (["train", "translate", "--pairs", "latin1.tsv"], "at line 1"),
    "one pair": (["train", "translate", "--pairs", "one.tsv"], "two different sources; got 1"),
    "a short text": (["train", "lm", "--text", "short.txt"], "longer than the context"),
    "a long side": (["train", "translate", "--pairs", "good.tsv", "--set=max_length=2"], "at most max_length=2"),
    "heads": (["--set=heads=5"], "heads must divide d_model; got d_model=64, heads=5"),
    "a field": (["--set=layer=2"], "got layer"),
    "no value": (["--set=steps"], "key=value; got 'steps'"),
    "a value": (["--set=steps=-1"], "got -1"),
    "a seed below 0": (["gradcheck", "exp", "--seed", "-1"], "whole number from 0 up; got -1; write --seed 0"),
    "a seed to train by": (["--seed", "-1"], "from 0 up; got -1"),
    "a seed to step by": (["step", "--seed", "-1"], "from 0 up; got -1"),
    "no name of an activation": (["--set=activation=[1]"], "got [1]; write activation=relu"),
    "true for a number": (["--set=spike=true"], "spike lies in 0 … inf; got True; write spike=0.1"),
    "a rate of true": (["--set=learning_rate=true", "--out", "a/b"], "learning_rate lies in 0 … inf; got True"),
    "a norm that is none": (["--set=clip_norm=true"], "clip_norm lies in"),
    "a decay that is none": (["--set=weight_decay=false"], "weight_decay lies in 0 … inf; got False"),
    "a sequence too short for the task": (["--set=max_length=8"], "max_length"),
    "no GPU": (["--backend", "cupy"], "backend 'cupy' needs"),
    "a folder in use": (["--out", "full"], "is not empty"),
    "no run": (["translate", "--model", "none", "x"], "none is not one"),
    "no run to resume": (["train", "--resume", "full"], "has no config.json"),
    "resume and more": (["train", "--resume", "full", "--set=steps=9"], "give --resume RUN alone"),
    "no lessons here": (["lessons", "build"], "lessons has none; write --folder PATH/lessons"),
    "no such lesson": (["lessons", "check", "99", "--folder", str(LESSONS)], "got '99'; there are 01"),
    "no such figure": (["figures", "loss"], "figures are reversal, numbers, step, lessons; got 'loss'"),
    "no such check": (["gradcheck", "batchnorm"], "'batchnorm', which none contains"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_answered_in_one_line_and_leaves_nothing(case, call, elsewhere, backend):
    if case == "no GPU" and backend == "cupy":
        pytest.skip("CuPy answers here")
    if case == "no GPU" and shell("--backend", "cupy", "--set=steps=1", *SMALL[:-1]).returncode == 0:
        pytest.skip("there is a GPU here")
    write_bad_files(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    arguments, text = CASES[case]
    status, out, err = call(*arguments)
    assert status == 2 and not out
    assert err.startswith("minitransformer: ") and err.count("\n") == 1 and text in err, err
    assert sorted(elsewhere.rglob("*")) == before, "something was left behind"


@pytest.mark.parametrize("out", [[], ["--out", "a/b"], ["--out", "there"]])
def test_a_run_that_is_refused_late_leaves_what_was_there(out, call, elsewhere, monkeypatch):
    """What only `train` finds out, before its first step, is too late for the door, and early enough for this."""
    from minitransformer import train

    def refuse(*arguments):
        raise ValueError("no such optimizer")

    (elsewhere / "there").mkdir()
    for part in ("make_optimizer", "_split"):
        with monkeypatch.context() as patched:
            patched.setattr(train, part, refuse)
            assert call(*out, *SMALL) == (2, "", "minitransformer: no such optimizer\n")
    assert sorted(elsewhere.rglob("*")) == [elsewhere / "there"]
    assert call(*out, *SMALL)[0] == 0


def test_a_resumed_run_that_is_refused_is_left_as_it_was(call, elsewhere, monkeypatch):
    from minitransformer import train

    call("--out", "r", *SMALL)
    config = json.loads((elsewhere / "r/config.json").read_text())
    (elsewhere / "r/config.json").write_text(json.dumps(config))  # not as it would be written
    before = {path: path.read_bytes() for path in sorted((elsewhere / "r").rglob("*")) if path.is_file()}
    monkeypatch.setattr(train, "make_optimizer", lambda *arguments: int("x"))
    assert call("train", "--resume", "r")[0] == 2
    assert {path: path.read_bytes() for path in sorted((elsewhere / "r").rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["translate", "--model", "n", "dozen"], "got 'dozen'"),
        (["translate", "--model", "n", "one " * 40], "max_length=32"),
        (["translate", "--model", "n", " "], "at least one token"),
        (["generate", "--model", "n", "--prompt", "x"], "translate --model"),
        (["translate", "--model", "n", "two", "--beams", "0"], "beams >= 1"),
        (["translate", "--model", "n", "two", "--beams", "2", "--length-penalty", "nan"], "finite length penalty"),
        (["translate", "--model", "n", "two", "--length-penalty", "2"], "write --beams 4"),
        (
            ["translate", "--model", "n", "two", "--beams", "2", "--temperature", "1"],
            "got --beams 2 and --temperature 1.0",
        ),
        (["translate", "--model", "n", "two", "--top-k", "5"], "got --top-k 5 and --top-p 1.0 at temperature 0"),
        (["attend", "--model", "n", "two", "--layer", "2"], "layers go from 1 to 1; got 2"),
        (["attend", "--model", "n", "two", "--head", "0"], "heads go from 1 to 2; got 0"),
        (["--out", "n", *SMALL], "n exists and is not empty"),
        (["translate", "--model", "n", "--backend", "cupy", "two"], "needs"),
    ],
)
def test_bad_input_to_a_trained_run_is_answered_in_one_line(arguments, text, numbers, call, elsewhere, backend):
    if text == "needs" and backend == "cupy":
        pytest.skip("CuPy answers here")
    before = {p: p.stat().st_mtime_ns for p in elsewhere.rglob("*")}
    status, out, err = call(*arguments)
    assert (status, out) == (2, "") and err.count("\n") == 1 and text in err, err
    assert {p: p.stat().st_mtime_ns for p in elsewhere.rglob("*")} == before


@pytest.mark.parametrize(
    "options, text",
    [
        (["--top-p", "0"], "0 < top_p <= 1; got 40 and 0.0"),
        (["--top-p", "1.5", "--temperature", "0"], "got 0 and 1.5"),
        (["--top-k", "-1"], "top_k >= 0"),
        (["--temperature", "-1"], "a temperature is >= 0"),
        (["--temperature", "nan"], "got nan; write --temperature 0.8"),
        (["--temperature", "0", "--top-p", "0.5"], "where nothing is; write --temperature 0.8, too"),
        (
            ["--beams", "2", "--temperature", "0.8"],
            "beams search and draw nothing; got --beams 2 and --temperature 0.8",
        ),
        (["--beams", "2", "--top-k", "4"], "got --top-k 4 and --top-p 1.0 at temperature 0"),
        (["--length-penalty", "2"], "got --length-penalty 2.0 and one beam; write --beams 4, too"),
        (["--beams", "0"], "beams >= 1"),
        (["--chunk", "-1"], "0 for all at once; got -1; write --chunk 64"),
        (["--seed", "-1"], "a seed is a whole number from 0 up; got -1; write --seed 0"),
        (["--repetition-penalty", "0"], "positive, 1 for none; got 0.0"),
        (["--stop", ""], "leave --stop out"),
        (["--prompt", ""], "a prompt has at least one token"),
        (["--tokens", "0"], "at least one token; got 0; write --tokens 100"),
    ],
)
def test_bad_input_to_a_language_model_is_answered_in_one_line(options, text, language, call):
    status, out, err = call("generate", "--model", "l", "--prompt", "the", *options)
    assert (status, out) == (2, "") and err.count("\n") == 1 and text in err, err


def test_no_prompt_at_all_is_answered_in_one_line(language):
    done = shell("generate", "--model", "l", input="\n \n")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pipe lines in" in done.stderr


def test_changed_data_is_noticed_on_resume(call, elsewhere):
    path = elsewhere / "p.tsv"
    path.write_text("".join(f"s{i}\tt{i}\n" for i in range(20)))
    assert call("train", "translate", "--pairs", "p.tsv", "--out", "r", *SMALL)[0] == 0
    path.write_text("".join(f"s{i}\tt{i + 1}\n" for i in range(20)))
    status, _, err = call("train", "--resume", "r")
    assert status == 2 and "has changed" in err


def test_standard_input_that_is_not_utf8_is_named(numbers):
    command = [sys.executable, "-m", "minitransformer.cli", "translate", "--model", "n"]
    done = subprocess.run(command, input=b"two\n\xff\n", capture_output=True)
    assert done.returncode == 2 and b"standard input is not, at byte 4" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root on Linux")
def test_a_disk_that_runs_full_keeps_the_last_checkpoint(elsewhere):
    disk = elsewhere / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        options = [
            "--set=checkpoint_every=5",
            "--set=steps=400",
            "--set=log_every=1",
            "--set=d_model=32",
            "--set=layers=1",
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "minitransformer.cli", "--out", disk / "r", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        while not list((disk / "r").glob("checkpoint/step-*")) and process.poll() is None:
            time.sleep(0.01)
        room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(b"x" * max(room - 20_000, 0))
        err = process.communicate()[1].splitlines()[-1]
        assert process.returncode == 2 and "needs room on the disk" in err and "train --resume" in err, err
        (disk / "filler").unlink()
        done = shell("train", "--resume", disk / "r", "--json")
        assert done.returncode == 0 and json.loads(done.stdout)["steps"] == 400, done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    "command",
    [[], ["train"], ["translate"], ["generate"], ["attend"], ["gradcheck"], ["bench"], ["lessons"], ["figures"]],
)
def test_help_has_an_example(command, call):
    status, out, _ = call(*command, "--help")
    assert status == 0 and "example:\n  minitransformer" in out


def test_lessons_are_built_and_checked(call, elsewhere):
    (elsewhere / "lessons").mkdir()
    for file in (LESSONS / "01_a_number_that_remembers.py", LESSONS / "01_a_number_that_remembers.ipynb"):
        (elsewhere / "lessons" / file.name).write_bytes(file.read_bytes())
    source = elsewhere / "lessons" / "01_a_number_that_remembers.py"
    source.write_text(source.read_text(encoding="utf-8").replace("## A slope", "## One slope"), encoding="utf-8")
    status, out, _ = call("lessons", "check")
    assert status == 1 and "differs from the notebook" in out and out.endswith("1 lessons, 1 to be mended\n")
    status, out, _ = call("lessons", "build", "01", "--json")
    row = json.loads(out)["lessons"][0]
    assert row["pictures"] == ["slope", "graph", "cost", "downhill"] and row["seconds"] < 60
    assert "differs" not in " ".join(row["complaints"])  # its links lead out of this folder
    assert (elsewhere / "figures/lessons/01/graph.json").exists()
    assert "One slope" in source.with_suffix(".ipynb").read_text(encoding="utf-8")


def test_a_missing_package_is_answered_with_what_to_install(call, monkeypatch, elsewhere):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    status, _, err = call(*SMALL)
    assert status == 2 and "pip install 'minitransformer[train]'" in err and not list(elsewhere.iterdir())


def test_attend_writes_a_page_of_all_heads_and_blanks_what_is_masked(numbers, call, elsewhere):
    status, out, _ = call("attend", "--model", "n", "twenty-one", "einundzwanzig", "--html", "--kind", "decoder")
    page = (elsewhere / "n" / "figures" / "attend.html").read_text(encoding="utf-8")
    assert status == 0 and f"({len(page.encode()) / 1e6:.2f} MB" in out
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [k["kind"] for k in data["kinds"]] == ["decoder", "encoder", "cross"]
    assert [label for label, *_ in data["kinds"][0]["rows"]] == ["<bos>", "ein", "und", "zwanzig"]
    assert [label for label, *_ in data["kinds"][2]["rows"]] == ["ein", "und", "zwanzig", "<eos>"]
    values = json.loads((elsewhere / "n" / "figures" / "attend-decoder.json").read_text())
    assert values["allowed"] == [[j <= i for j in range(4)] for i in range(4)]
    result = json.loads(call("attend", "--model", "n", "--json", "--html", "twenty-one")[1])
    assert result["bytes"] == (elsewhere / result["page"]).stat().st_size


def test_step_prints_an_example_forwards_and_then_backwards(call, elsewhere):
    status, out, _ = call("step")
    assert status == 0 and out.startswith("attention: 8 steps forwards, 8 backwards")
    assert out.index("forward 8/8") < out.index("backward 1/8") < out.index("what has reached the leaves")
    status, out, _ = call("step", "layer", "--html", "a/x.html", "--svg", "x.svg", "--dot", "x.dot")
    assert status == 0 and "written: a/x.html (0." in out and "forward" not in out
    assert (elsewhere / "x.svg").read_text().startswith("<svg") and (elsewhere / "x.dot").read_text()[:7] == "digraph"
    result = json.loads(call("step", "neuron", "--json")[1])
    assert [leaf["name"] for leaf in result["leaves"]] == ["weight", "x", "bias"] and result["files"] == []


def test_step_takes_a_function_of_ones_own(call, elsewhere):
    (elsewhere / "neighbour.py").write_text("FACTOR = 3.0\n")
    lines = "import numpy as np", "from neighbour import FACTOR", "", "", "def loss(x=np.ones(2)):"
    (elsewhere / "mine.py").write_text("\n".join([*lines, "    y = x * FACTOR", "    return y", ""]))
    status, out, _ = call("step", "--file", "mine.py:loss")
    assert status == 0 and "mine.py:6  y = x * FACTOR" in out and "is the sum of the output" in out
    for place in ("mine.py", "none.py:loss", "mine.py:"):
        assert call("step", "--file", place)[0] == 2
    status, _, err = call("step", "--file", "mine.py:nothing")
    assert status == 2 and "has to define nothing" in err
    status, _, err = call("step", "nonsense")
    assert status == 2 and "the examples are attention, neuron" in err and err.count("\n") == 1


def test_step_goes_through_the_loss_of_a_trained_model(numbers, call, elsewhere):
    result = json.loads(call("step", "--model", "n", "--json", "twenty-one", "einundzwanzig")[1])
    names = {leaf["name"] for leaf in result["leaves"] if leaf["gradient"] is not None}
    assert "task.model.encoder.layers.0.self_attention.q_proj.weight" in names
    assert len(result["order"]) > 50 and result["steps"][-1]["op"] == "divide"
    assert call("step", "--model", "n")[0] == 2


def test_step_turns_pages_on_a_terminal():
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "minitransformer.cli", "step", "neuron"], stdin=follower, stdout=follower
    )
    os.close(follower)
    for keys in (b"\n", b"\n", b"b\n", b"9\n", b"q\n"):
        os.write(leader, keys)
    seen = b""
    try:
        while chunk := os.read(leader, 4096):
            seen += chunk
    except OSError:
        pass
    assert process.wait() == 0
    pages = re.findall(r"(\w+ \d+/\d+)  ", seen.decode())
    assert [p for p in pages if "ward" in p] == ["forward 1/7", "forward 2/7", "forward 1/7", "backward 1/7"]
