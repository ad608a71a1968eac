"""The command `minitransformer`. Results go to standard output, progress and complaints to standard error."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import __version__

EXIT_BAD_INPUT = 2
EXIT_STOPPED = 130


def _value(text: str) -> Any:
    """Read the value of --set: a number, true or false where it looks like one, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for item in arguments.set or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ValueError(f"--set takes key=value; got {item!r}; write --set steps=500")
        settings[key] = _value(value)
    for name in ("seed", "backend"):
        if getattr(arguments, name, None) is not None:
            settings[name] = getattr(arguments, name)
    for name in ("pairs", "text"):
        if getattr(arguments, name, None):
            settings[name] = str(Path(getattr(arguments, name)).resolve())
    return settings


def _check_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"a new run goes to a new folder; {folder} exists and is not empty; "
            f"choose another --out, or --resume {folder}"
        )


def _new_run(task: str, out: str | None) -> Path:
    """Make the folder of a new run: the one asked for, or runs/TASK-001, -002, ..."""
    if out is not None:
        folder = Path(out)
        _check_new(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    number = 1
    while True:
        folder = Path("runs") / f"{task}-{number:03d}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def _made_for_run(task: str, out: str | None) -> tuple[Path, list[Path]]:
    """Make the folder of a new run; return it, and all that had to be made for it, the innermost first."""
    first = Path(out or "runs")
    missing = [folder for folder in (first, *first.parents) if not folder.exists()]
    folder = _new_run(task, out)
    return folder, missing if out is not None else [folder, *missing]


@contextlib.contextmanager
def _taken_back(made: list[Path]) -> Iterator[None]:
    """Take folders away again, as far as they are empty, where a run is refused before its first step."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # what holds anything stays
            for folder in made:
                folder.rmdir()
        raise


def _show(result: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    print(json.dumps(result, ensure_ascii=False, allow_nan=False) if as_json else "\n".join(lines))


def run_train(arguments: argparse.Namespace) -> int:
    """Train a task from the start, or go on with a run, and write its result and figures; on all ranks of mpiexec."""
    from . import distributed

    ranks = distributed.ranks()
    if ranks is None:
        config, task, old = _prepare(arguments)
        folder, made = (old, []) if old else _made_for_run(config.task, arguments.out)
        with _taken_back(made):
            return _train(arguments, config, task, folder, None)
    try:
        config, task, old = ranks.together(lambda: _prepare(arguments))
        ranks.together(lambda: ranks.require_gpus(config.backend))
        makes = ranks.rank == 0 and old is None
        new, made = ranks.together(lambda: _made_for_run(config.task, arguments.out) if makes else (old, []))
    except distributed.Elsewhere:
        return EXIT_BAD_INPUT
    folder = Path(ranks.told(str(new)))
    try:
        with _taken_back(made):
            return _train(arguments, config, task, folder, ranks)
    except Exception as error:  # the others wait for this rank: end them, too
        if ranks.rank:
            time.sleep(1.0)  # what has happened on all ranks is said by the first
        where = f"rank {ranks.rank} of {ranks.size}: " if ranks.rank else ""
        print(f"minitransformer: {where}{' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        sys.stderr.flush()
        ranks.abort(EXIT_BAD_INPUT)


def _prepare(arguments: argparse.Namespace) -> tuple[Any, Any, Path | None]:
    """Return the config, the task and, of a run to be resumed, its folder; nothing is written before all is checked."""
    from . import backend, checkpoint, tasks

    settings, folder = _settings(arguments), None
    checkpoint.require_safetensors()
    if arguments.resume:
        folder = Path(arguments.resume)
        if set(settings) - {"backend"} or arguments.out or arguments.task:
            raise ValueError(
                "--resume goes on with the run as it was set; got other options too; "
                "give --resume RUN alone, or with --backend"
            )
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"--resume takes the folder of a run; {folder} has no config.json; write --resume runs/reversal-001"
            )
        config = dataclasses.replace(tasks.read_config(folder), **settings)
    else:
        config = tasks.make_config(arguments.task or "reversal", settings)
    backend.set_backend(config.backend)
    return config, tasks.make_task(config), folder


def _train(arguments: argparse.Namespace, config: Any, task: Any, folder: Path, ranks: Any) -> int:
    """Train, and show the result; on several ranks one speaks."""
    from .train import Stopped

    writes = ranks is None or ranks.rank == 0
    try:
        result = _train_in(folder, task, config, arguments.json, ranks)
    except Stopped as stopped:
        if writes:
            print(f"{stopped}; go on with: minitransformer train --resume {folder}", file=sys.stderr)
        return EXIT_STOPPED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ValueError(
            f"a run needs room on the disk; {folder} is full (the last whole checkpoint is kept); "
            f"free some, then minitransformer train --resume {folder}"
        ) from error
    if writes:
        _show(result, arguments.json, _summary(result, folder))
    return 0


def _train_in(folder: Path, task: Any, config: Any, quiet: bool, ranks: Any = None) -> dict[str, Any]:
    """Train from the newest checkpoint in a folder, or from the start, and write all that a run leaves behind."""
    from . import checkpoint, draw
    from .train import train

    vocabulary = folder / "tokenizer.json"
    if vocabulary.exists() and checkpoint.read_json(vocabulary) != task.vocabulary():
        raise ValueError(
            f"a run goes on with the data it began with; {config.pairs or config.text} has changed; start a new run"
        )

    def begin() -> None:
        checkpoint.write_json(folder / "config.json", config.to_dict())
        checkpoint.write_json(vocabulary, task.vocabulary())

    begun = bool(checkpoint.checkpoints(folder / "checkpoint"))  # without one a run begins again, to the same result
    if ranks is not None:
        begun = ranks.told(begun)
    result = train(task, config, folder, resume=begun, quiet=quiet, ranks=ranks, begin=begin)
    if not result:  # another rank writes
        return result
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [line for line in log if "left_out" not in line]  # a spike's own line; its step may have another
    curve = [line["step"] for line in log], [line["loss"] for line in log]
    checked = [line for line in log if "validation_loss" in line]
    validation = [line["step"] for line in checked], [line["validation_loss"] for line in checked]
    draw.loss_curve(*curve, folder / "figures" / "loss.png", validation if checked else None, config.task)
    task.figures(folder / "figures")
    result = {"task": config.task, **result, "examples": task.examples(), "run": str(folder)}
    checkpoint.write_json(folder / "result.json", result)
    return result


def _summary(result: dict[str, Any], folder: Path) -> list[str]:
    lines = [f"trained {result['steps']} steps in {result['seconds']:.0f} s, last loss {result['loss']:.3g} nats/token"]
    if "exact_match" in result:
        lines.append(f"exact match on {result['held_out']} held-out sequences: {100 * result['exact_match']:.2f} %")
    if "bleu" in result:
        lines.append(
            f"BLEU {result['bleu']:.2f}   chrF {result['chrf']:.2f}   (padding {100 * result['padding']:.1f} %)"
        )
    if "validation_loss" in result:
        lines.append(
            f"held-out text: {result['validation_loss']:.4f} nats/token, {result['bits_per_byte']:.4f} bits/byte"
        )
    if result.get("left_out"):
        lines.append(f"steps left out, as their loss leapt: {result['left_out']} (left_out in metrics.jsonl)")
    kilobytes = [f"{result[name] / 1000:,.1f} kB" for name in ("parameter_bytes", "optimizer_bytes")]
    lines.append(f"parameters: {kilobytes[0]}   state of the optimizer: {kilobytes[1]}")
    lines += [f"{source} → {output}" for source, output in result["examples"]]
    return [*lines, f"run: {folder} (config.json, metrics.jsonl, result.json, checkpoint/, figures/)"]


def run_translate(arguments: argparse.Namespace) -> int:
    """Translate the texts given, or the lines of standard input."""
    options = _options(arguments)
    task = _load(arguments, sequences=True)
    texts = arguments.source or [line.strip() for line in _stdin() if line.strip()]
    if not texts:
        raise ValueError("translate needs a text; got none; write it after the options, or pipe lines in")
    outputs = task.translate(texts, options)
    _show({"translations": list(map(list, zip(texts, outputs, strict=True)))}, arguments.json, outputs)
    return 0


def _options(arguments: argparse.Namespace) -> Any:
    """Return how texts are to be written, of what was said on the command line."""
    from .generate import Options

    said = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(Options)}
    try:
        return Options(**{name: value for name, value in said.items() if value is not None})
    except ValueError as error:  # the same, as it is written here
        words = str(error)
        for name in said:
            words = words.replace(f"{name}=", f"--{name.replace('_', '-')} ")
        raise ValueError(words) from None


def _stdin() -> list[str]:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"input is UTF-8; standard input is not, at byte {error.start}; convert it with iconv"
        ) from None


def _load(arguments: argparse.Namespace, sequences: bool | None = None) -> Any:
    from . import backend, tasks

    backend.set_backend(arguments.backend or "numpy")
    task = tasks.load_task(arguments.model)
    if sequences is not None and sequences != isinstance(task, tasks.SequenceTask):
        need = (
            "an encoder-decoder; write generate --model" if sequences else "a language model; write translate --model"
        )
        raise ValueError(f"this command needs a run of the other kind; {arguments.model} is not {need} for it")
    return task


def run_generate(arguments: argparse.Namespace) -> int:
    """Continue the prompts given, or the lines of standard input, with a language model."""
    if arguments.temperature is None:
        arguments.temperature = 0.0 if (arguments.beams or 1) > 1 else 0.8
    if arguments.top_k is None and arguments.temperature > 0:
        arguments.top_k = 40
    options = _options(arguments)
    task = _load(arguments, sequences=False)
    if arguments.tokens < 1:
        raise ValueError(f"generate writes at least one token; got {arguments.tokens}; write --tokens 100")
    if arguments.stop == "":
        raise ValueError("a text to stop at has at least one character; got an empty one; leave --stop out")
    prompts = arguments.prompt or [line for line in _stdin() if line.strip()]
    if not prompts:
        raise ValueError("generate needs a prompt; got none; write --prompt 'The ', or pipe lines in")
    texts = task.write(prompts, arguments.tokens, options, arguments.stop or "")
    _show({"text": texts[0], "texts": texts}, arguments.json, texts)
    return 0


def run_attend(arguments: argparse.Namespace) -> int:
    """Draw attention heatmaps of any layer and head for a text, or a pair."""
    import numpy as np

    from . import draw, tasks
    from .views.heads import head_view

    task = _load(arguments)
    weights, columns, rows = task.attention(arguments.source, arguments.target)
    arguments.kind = arguments.kind or list(weights)[-1]
    if arguments.kind not in weights:
        raise ValueError(
            f"this model has {', '.join(weights)} attention; got {arguments.kind!r}; write --kind {next(iter(weights))}"
        )
    target_side = ["<bos>", *rows[:-1]]
    sides = {"encoder": (columns, columns), "decoder": (target_side, target_side), "cross": (rows, columns)}
    if len(weights) == 1:
        sides = {name: (columns, columns) for name in weights}
    rows, columns = sides[arguments.kind]
    grid = np.stack(weights[arguments.kind])
    layers, heads = grid.shape[:2]
    for name, chosen, count in (("layer", arguments.layer, layers), ("head", arguments.head, heads)):
        if chosen is not None and not 1 <= chosen <= count:
            raise ValueError(f"{name}s go from 1 to {count}; got {chosen}; write --{name} {count}")
    folder = Path(arguments.out) if arguments.out else Path(arguments.model) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"{name} {n}" for name, n in (("layer", arguments.layer), ("head", arguments.head)) if n is not None]
    path = folder / ("-".join(["attend", arguments.kind, *parts]).replace(" ", "") + ".png")
    grid = grid[slice(None) if arguments.layer is None else slice(arguments.layer - 1, arguments.layer)]
    grid = grid[:, slice(None) if arguments.head is None else slice(arguments.head - 1, arguments.head)]
    allowed = tasks.may_look(task.config, arguments.kind, len(rows), len(columns))
    if grid.shape[:2] == (1, 1):
        title = ", ".join([f"{arguments.kind} attention", *parts])
        draw.attention_heatmap(grid[0, 0], rows, columns, path, title, allowed)
    else:
        first = (arguments.layer or 1, arguments.head or 1)
        draw.attention_grid(grid, rows, columns, path, f"{arguments.kind} attention", allowed, first)
    result: dict[str, Any] = {"figure": str(path), "rows": list(rows), "columns": list(columns)}
    lines: list[str] = []
    if arguments.html:
        page = folder / "attend.html"
        order = sorted(weights, key=lambda name: name != arguments.kind)  # the one asked for is shown first
        head_view(
            {name: (np.stack(weights[name]), *sides[name]) for name in order},
            page,
            f"attention of {Path(arguments.model).name}",
        )
        result |= {"page": str(page), "bytes": page.stat().st_size}
        lines = [f"written: {page} ({page.stat().st_size / 1e6:.2f} MB, all layers and heads, opens in any browser)"]
    _show(result, arguments.json, [f"drawn: {path} (and .svg, .json)", *lines])
    return 0


def run_step(arguments: argparse.Namespace) -> int:
    """Step through an example, a function of the user's, or the loss of a trained model, forwards and backwards."""
    from . import draws
    from .trace import trace

    fn = _to_step_through(arguments)
    draws.manual_seed(arguments.seed or 0)
    record = trace(fn)
    files: list[dict[str, Any]] = []
    for kind in ("html", "svg", "dot"):
        if getattr(arguments, kind):
            path = Path(getattr(arguments, kind))
            getattr(record, kind)(path)
            files.append({"path": str(path), "bytes": path.stat().st_size})
    if arguments.json or files:
        result = {**record.to_json(), "files": files} if arguments.json else {}
        _show(result, arguments.json, [f"written: {f['path']} ({f['bytes'] / 1e6:.2f} MB)" for f in files])
    elif sys.stdin.isatty() and sys.stdout.isatty():
        _turn_pages(record.pages(shutil.get_terminal_size().columns))
    else:
        print(record.text(), end="")
    return 0


def _to_step_through(arguments: argparse.Namespace) -> Any:
    """Return the function that is asked for; it takes nothing."""
    from . import backend, examples

    backend.set_backend(arguments.backend or "numpy")
    if arguments.model:
        if arguments.file or not arguments.what:
            raise ValueError("step --model takes a text, and no --file; write step --model RUN eighty-seven")
        task = _load(arguments)
        batch = task.batch_of(arguments.what, arguments.target)

        def loss() -> Any:
            return task.loss(*batch)[0]

        return loss
    if arguments.file:
        return _function_of(arguments.file)
    name = arguments.what or "attention"
    if name not in examples.EXAMPLES or arguments.target:
        known = ", ".join(examples.EXAMPLES)
        raise ValueError(f"the examples are {known}; got {name!r}; write step attention, or --file FILE:FUNCTION")
    return examples.EXAMPLES[name]


def _function_of(place: str) -> Any:
    """Return the function that FILE:FUNCTION names, having run the file as Python does."""
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not path.is_file() or not name:
        raise ValueError(f"--file takes FILE:FUNCTION; got {place!r}, which is none; write --file lesson.py:loss")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--file takes a file of Python; got {file!r}; write --file lesson.py:{name}")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # so that it finds its neighbours
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{file} has to define {name}; it has no such function; write --file {file}:NAME")
    return found


def _turn_pages(pages: list[str]) -> None:
    """Show pages one by one, as the reader asks for them."""
    at = 0
    while 0 <= at < len(pages):
        print(f"{pages[at]}\n", flush=True)
        try:
            asked = input(f"{at + 1}/{len(pages)}  Enter: next   b: back   a number: that one   q: quit  ").strip()
        except EOFError:
            return
        if asked == "q":
            return
        at = max(at - 1, 0) if asked == "b" else min(int(asked), len(pages)) - 1 if asked.isdigit() else at + 1


def run_gradcheck(arguments: argparse.Namespace) -> int:
    """Check every op and module against finite differences; print one row each."""
    from . import gradcases

    rows: list[dict[str, Any]] = []
    for row in gradcases.run(arguments.name, seed=arguments.seed or 0):
        if not rows and not arguments.json:
            print(f"{'name':<34}{'points':>8}{'1st order':>12}{'2nd order':>12}  verdict")
        rows.append(row)
        if not arguments.json:
            figures = "".join(f"{'-' if e is None else f'{e:.1e}':>12}" for e in (row["first"], row["second"]))
            print(
                f"{row['name']:<34}{row['points']:>8}{figures}  {'ok' if row['ok'] else 'FAILED: ' + row['message']}",
                flush=True,
            )
    failed = sum(not row["ok"] for row in rows)
    _show(
        {"checked": len(rows), "failed": failed, "rows": rows},
        arguments.json,
        [f"{len(rows)} checked, {failed} failed"],
    )
    return 1 if failed else 0


def run_bench(arguments: argparse.Namespace) -> int:
    """Time a step or decoding beside installed peers, or a step over sizes or by its terms; or measure techniques.

    Figures and a picture go into the folder of a run.
    """
    from . import checkpoint
    from .bench import attention, decoding, gpu, profile, run, scaling, stability

    def progress(text: str) -> None:
        if not arguments.json:
            print(text, file=sys.stderr, flush=True)

    quick = arguments.quick
    if arguments.out:
        _check_new(Path(arguments.out))  # before minutes of timing, not after
    alone = {  # what takes none of --peers, --config and --rounds: module, why, and how it is measured
        "stability": (
            stability, "has models of its own",
            lambda: stability.stability(*((8, 40, 1) if quick else (stability.LAYERS, 300, 3)), progress),
        ),
        "scaling": (scaling, "times our own step", lambda: scaling.scaling(1 if quick else 9, progress)),
        "attention": (attention, "has its own models", lambda: attention.effects(quick, progress)),
    }  # fmt: skip
    what: Any
    if arguments.what in alone:
        what, why, measure_alone = alone[arguments.what]
        if arguments.peers or arguments.config or arguments.rounds:
            name = f"bench {arguments.what}"
            raise ValueError(f"{name} {why}; got other options too; write {name}")
        result = measure_alone()
    elif arguments.what == "profile":
        if arguments.peers or arguments.rounds:
            raise ValueError("bench profile looks into our own step; got --peers or --rounds; write bench profile")
        what = profile
        result = profile.profiles(arguments.config, 8 if quick else 60, progress)
    else:
        rounds = arguments.rounds if arguments.rounds is not None else 2 if quick else 9
        beside = {"step": (run, run.bench), "decoding": (decoding, decoding.decoding), "gpu": (gpu, gpu.bench)}
        what, measure = beside[arguments.what]
        result = measure(arguments.peers, arguments.config, rounds, progress)
    folder = _new_run("bench", arguments.out)
    checkpoint.write_json(folder / "result.json", result)
    what.draw(result, folder / "figures" / f"{arguments.what}.png")
    _show(
        {**result, "run": str(folder)}, arguments.json, [*what.table(result), f"run: {folder} (result.json, figures/)"]
    )
    return 0


def run_lessons(arguments: argparse.Namespace) -> int:
    """Build the notebooks of the lessons from their sources, or say which do not match them."""
    from .lessons import notebook, rules

    folder, rows = Path(arguments.folder), []
    for path in notebook.sources(folder, arguments.number):
        row: dict[str, Any] = {"lesson": path.stem}
        if arguments.what == "build":
            run = notebook.execute(path)
            notebook.write(path, run, folder.resolve().parent / "figures" / "lessons")
            row |= {"seconds": round(run.seconds, 1), "pictures": [picture.name for picture in run.pictures]}
        row["complaints"] = rules.complaints(path)
        rows.append(row)
        if not arguments.json:
            took = f"built in {row['seconds']:.0f} s, " if "seconds" in row else ""
            print(
                "\n  ".join([f"{path.stem}: {took}{'not' if row['complaints'] else 'all'} right", *row["complaints"]])
            )
    wrong = sum(bool(row["complaints"]) for row in rows)
    _show({"lessons": rows, "wrong": wrong}, arguments.json, [f"{len(rows)} lessons, {wrong} to be mended"])
    return 1 if wrong else 0


def run_figures(arguments: argparse.Namespace) -> int:
    """Make the figures of the README and of the lessons anew."""
    from . import figures

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    out, lessons = Path(arguments.out), Path(arguments.folder)
    made = figures.make(arguments.name, out, lessons, arguments.seed or 0, progress=progress)
    _show({"figures": [str(path) for path in made]}, arguments.json, [f"drawn: {path}" for path in made])
    return 0


def _common(parser: argparse.ArgumentParser, run: Any) -> None:
    parser.add_argument("--backend", choices=("numpy", "cupy"), help="where arrays live (default: numpy)")
    parser.add_argument("--seed", type=int, help="random seed (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, and nothing else")
    parser.set_defaults(run=run)


def _training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FOLDER", help="where the run goes (default: runs/TASK-001, ...)")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped, to the same weights")
    parser.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="change a field of the config: steps batch_size learning_rate d_model ...",
    )
    _common(parser, run_train)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="minitransformer",
        formatter_class=raw,
        description="The Transformer you can step through. Without a command: train the reversal task, end to end.",
        epilog="example:\n  minitransformer\n  minitransformer translate --model runs/reversal-001 '3 1 4 1 5'",
    )
    parser.add_argument("--version", action="version", version=f"minitransformer {__version__}")
    _training(parser)
    parser.set_defaults(task=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, about: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=about, description=about, formatter_class=raw, epilog=f"example:\n  minitransformer {example}"
        )

    train = command(
        "train", "train a task: reversal, numbers, translate, lm", "train translate --pairs pairs.tsv --set steps=2000"
    )
    train.add_argument("task", nargs="?", help="reversal, numbers, translate (with --pairs) or lm (with --text)")
    train.add_argument("--pairs", metavar="FILE", help="UTF-8, source TAB target, one pair a line")
    train.add_argument("--text", metavar="FILE", help="UTF-8 text for a language model")
    _training(train)

    translate = command(
        "translate",
        "translate texts, or lines of standard input",
        "translate --model runs/numbers-001 eighty-seven\n"
        "  minitransformer translate --model runs/translate-001 --beams 4 --length-penalty 0.6 < lines.txt",
    )
    translate.add_argument("source", nargs="*", help="texts; without any, lines of standard input")
    generate = command(
        "generate",
        "continue texts with a language model",
        "generate --model runs/lm-001 --prompt 'The ' --top-p 0.9 --stop '.'\n"
        "  minitransformer generate --model runs/lm-001 --prompt 'The ' --beams 4 --repetition-penalty 1.2\n"
        "  minitransformer generate --model runs/lm-001 --temperature 0 < prompts.txt",
    )
    generate.add_argument("--prompt", action="append", help="may come several times; without, lines of standard input")
    generate.add_argument("--tokens", type=int, default=100, help="how many tokens to write (default: 100)")
    generate.add_argument("--chunk", type=int, help="how many tokens of prompts to read at once (default: 0, all)")
    generate.add_argument("--stop", metavar="TEXT", help="end a text before this")
    _writing(translate, "0, the likeliest token", "0, all")
    _writing(generate, "0.8; with beams 0, the likeliest token", "40")
    attend = command(
        "attend", "draw attention heatmaps", "attend --model runs/numbers-001 eighty-seven --layer 2 --head 1"
    )
    attend.add_argument("source")
    attend.add_argument("target", nargs="?", help="default: the model's own translation")
    attend.add_argument(
        "--kind", default=None, choices=("cross", "encoder", "decoder"), help="which attention (default: cross)"
    )
    attend.add_argument("--layer", type=int, help="one layer, from 1 (default: all)")
    attend.add_argument("--head", type=int, help="one head, from 1 (default: all)")
    attend.add_argument("--out", metavar="FOLDER", help="where figures go (default: the run's figures/)")
    attend.add_argument(
        "--html", action="store_true", help="write attend.html too: all heads, with lines between tokens"
    )
    for sub, run in ((translate, run_translate), (generate, run_generate), (attend, run_attend)):
        sub.add_argument("--model", required=True, metavar="RUN", help="the folder of a trained run")
        _common(sub, run)
    step = command(
        "step", "step through a computation, forwards and backwards",
        "step attention\n  minitransformer step layer --html layer.html\n"
        "  minitransformer step --file lesson.py:loss\n"
        "  minitransformer step --model runs/numbers-001 eighty-seven --html loss.html",
    )  # fmt: skip
    step.add_argument("what", nargs="?", help="attention (default), neuron, broadcast, softmax, layer_norm, layer; "
                      "with --model a text")  # fmt: skip
    step.add_argument("target", nargs="?", help="with --model: the text to be written (default: the model's own)")
    step.add_argument("--file", metavar="FILE:FUNCTION", help="a function of yours that gives a Tensor and needs no "
                      "arguments; arrays among its defaults become leaves")  # fmt: skip
    step.add_argument("--model", metavar="RUN", help="a trained run: the loss of a text, or a pair")
    for kind, about in (("html", "a page to step through"), ("svg", "the tape"), ("dot", "the tape for Graphviz")):
        step.add_argument(f"--{kind}", metavar="FILE", help=f"write {about} to a file, and no text")
    _common(step, run_step)
    check = command("gradcheck", "check every op and module against finite differences", "gradcheck layer_norm")
    check.add_argument("name", nargs="?", help="only names that contain this")
    _common(check, run_gradcheck)
    timing = command("bench", "time a training step beside PyTorch, JAX and others", "bench --config reversal --quick")
    kinds = ("step", "decoding", "attention", "stability", "scaling", "profile", "gpu")
    timing.add_argument("what", nargs="?", choices=kinds, default="step", help="default: step")
    timing.add_argument(
        "--peers",
        help="ours,book,torch,torch-adam,torch-compile,jax,hips; of gpu ours,ours-eager,book,torch,torch-graph,"
        "torch-compile,jax (default: all installed)",
    )
    timing.add_argument("--config", help="reversal,gpt-small,gpt-large; of decoding small,gpt2-small (default: all)")
    timing.add_argument("--rounds", type=int, help="turns of all peers (default: 9)")
    timing.add_argument("--quick", action="store_true", help="two rounds, to see it work")
    timing.add_argument("--out", metavar="FOLDER", help="where results go (default: runs/bench-001, ...)")
    timing.add_argument("--json", action="store_true", help="print the result as one JSON object, and nothing else")
    timing.set_defaults(run=run_bench)
    _figures(command("figures", "make the figures of README and lessons anew", "figures reversal"))
    _lessons(command("lessons", "build the notebooks of the lessons, or check them", "lessons build 06"))
    return parser


def _writing(parser: argparse.ArgumentParser, temperature: str, top_k: str) -> None:
    """Add what says how to write; who says nothing gets None."""
    for name, of, mark, about in (
        ("temperature", float, "T", f"draw tokens; 0 takes the likeliest (default: {temperature})"),
        ("top-k", int, "K", f"draw among the K likeliest, 0 for all (default: {top_k})"),
        ("top-p", float, "P", "draw among the likeliest that have this share together (default: 1)"),
        ("beams", int, "N", "search for the likeliest text with N beams, drawing nothing (default: 1)"),
        ("length-penalty", float, "A", "compare beams by ln p / length^A; greater favours longer texts (default: 1)"),
        ("repetition-penalty", float, "R", "above 1: what a text already has becomes less likely (default: 1)"),
    ):
        parser.add_argument(f"--{name}", type=of, metavar=mark, help=about)


def _figures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="*", help="reversal, numbers (trained for it), step (by Chromium), lessons (run); default: all"
    )
    parser.add_argument("--out", metavar="FOLDER", default="figures", help="where figures go (default: figures)")
    parser.add_argument("--folder", default="lessons", help="where the lessons lie (default: lessons)")
    parser.add_argument("--seed", type=int, help="random seed of what is trained (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, and nothing else")
    parser.set_defaults(run=run_figures)


def _lessons(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("build", "check"), help="run sources into notebooks, or compare the two")
    parser.add_argument("number", nargs="*", metavar="NN", help="which lessons, such as 06 (default: all)")
    parser.add_argument("--folder", default="lessons", help="where NN_name.py lie (default: lessons)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, and nothing else")
    parser.set_defaults(run=run_lessons)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 (a check failed), 2 (bad input), 130 (stopped)."""
    arguments = build_parser().parse_args(argv)
    try:
        if (seed := getattr(arguments, "seed", None)) is not None and seed < 0:
            raise ValueError(f"a seed is a whole number from 0 up; got {seed}; write --seed 0")
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return EXIT_STOPPED
    except BrokenPipeError:  # the reader of a pipe has gone, as `head` does
        sys.stderr.close()
        return 1
    except (ValueError, TypeError, IndexError, RuntimeError, FloatingPointError, OSError) as error:
        print(f"minitransformer: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
