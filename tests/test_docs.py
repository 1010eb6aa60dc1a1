"""The pages and the README: they build without a network, and every command in them is one that exists."""

import ast
import contextlib
import io
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from da3_splat.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NERFSTUDIO = ("ns-train", "ns-eval", "ns-export", "ns-render", "ns-viewer")
# What docs/nerfstudio.md names in passing: values for ns-train's options, and options that are not ns-train's.
EXAMPLE_VALUES = {
    "--load-dir": "outputs/nerfstudio_models",
    "--max-num-iterations": "10",
    "--pipeline.network": "mini",
    "--pipeline.model.depth-weight": "0.1",
}
RENDERING_OPTIONS = {"--output-format images"}


def commands() -> list[str]:
    """Every line of a shell block, and every inline command, of the pages."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"```bash\n(.*?)```", text, re.S):
            found |= {line.split("   #")[0].split("  #")[0].strip() for line in block.splitlines() if line.strip()}
        found |= set(re.findall(r"`((?:uv run )?(?:da3-splat|ns-[a-z]+|python scripts/|scripts/)[^`]*)`", text))
    return sorted(found)


def program_and_arguments(command: str) -> tuple[str, list[str]]:
    """What is run, without the launchers before it: da3-splat, ns-train, a script, ..."""
    words = [word.replace("…", "x") for word in shlex.split(command)]
    while words and words[0] in ("uv", "run", "python", "pip", "install", "&&"):
        if words[0] == "pip":  # pip install uv && uv run ...
            words = words[words.index("&&") + 1 :] if "&&" in words else []
            continue
        words = words[1:]
    if words and words[0] == "torchrun":
        script = next(index for index, word in enumerate(words) if word.endswith(".py"))
        words = words[script:]
    return (words[0], words[1:]) if words else ("", [])


def known_commands() -> set[str]:
    tree = ast.parse((ROOT / "da3_splat" / "cli.py").read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} - {"main"} | {
        "view",
        "reconstruct",
    }


@cache
def help_of(*words: str) -> str:
    """What --help says of one of our commands."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return said.getvalue()


@pytest.mark.parametrize("command", commands())
def test_a_command_exists_with_its_options(command):
    program, arguments = program_and_arguments(command.split(" && ")[-1])
    options = [word.split("=")[0] for word in arguments if word.startswith("--")]
    if program == "da3-splat" and arguments and not arguments[0].startswith("-"):
        assert arguments[0] in known_commands(), command
        words = arguments[:1]
        if arguments[0] == "evaluate" and len(arguments) > 1:
            words = arguments[:2]
        text = help_of(*words)
        assert "usage" in text
        for option in options:
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), f"{command}: no {option}"
    elif program.startswith(("scripts/", "examples/")):
        path = ROOT / program
        assert path.is_file(), command
        text = path.read_text()
        for option in options:
            name = option.removeprefix("--").replace("-", "_")
            assert re.search(rf"\b{name}\b|{re.escape(option)}", text), f"{command}: no {option}"
            for value in re.findall(r"--config (\S+)", command):
                assert (ROOT / value).is_file(), command
    elif program.startswith("ns-"):
        assert program in NERFSTUDIO, command  # its options: test_nerfstudio_takes_a_command
    elif program in ("", "da3-splat", "ruff", "mypy", "mkdocs", "pytest", "sync", "train", "uv"):
        pass  # not ours, or `da3-splat` alone
    else:
        raise AssertionError(f"{command}: neither known nor on the list of what is not parsed")


@pytest.fixture(scope="module")
def nerfstudio_commands():
    """What each of Nerfstudio's commands reads its arguments into. Importing all of its methods takes half a minute."""
    from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
    from nerfstudio.scripts import exporter, render
    from nerfstudio.scripts.eval import ComputePSNR
    from nerfstudio.scripts.viewer.run_viewer import RunViewer

    return dict(zip(NERFSTUDIO, (AnnotatedBaseConfigUnion, ComputePSNR, exporter.Commands, render.Commands, RunViewer)))


def nerfstudio_lines() -> list[str]:
    """The commands of the pages that Nerfstudio parses, and each option that its page names in passing."""
    lines = [shlex.join(["ns-train", *words]) for words in named_options()]
    for command in commands():
        program, arguments = program_and_arguments(command)
        if program in NERFSTUDIO and any(word.startswith("--") for word in arguments):
            lines.append(shlex.join([program, *arguments]))
    return lines


def named_options() -> list[list[str]]:
    """`--option value` where docs/nerfstudio.md speaks of ns-train, as what ns-train da3-splat (da3-views) takes."""
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / "nerfstudio.md").read_text(), flags=re.S)
    found = []
    for option in sorted(set(re.findall(r"`(--[a-z][^`]*)`", text)) - RENDERING_OPTIONS):
        words = shlex.split(option)
        words += [] if len(words) > 1 else [EXAMPLE_VALUES[words[0]]]
        found.append(["da3-splat", *(["da3-views", *words] if words[0] in ("--poses",) else words)])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("line", nerfstudio_lines())
def test_nerfstudio_takes_a_command(line, nerfstudio_commands):
    """Parsed by Nerfstudio's own reader into its configuration; nothing is run, no file has to be there."""
    import tyro

    program, *arguments = shlex.split(line)
    read = tyro.cli(nerfstudio_commands[program], args=arguments)
    if "--max-num-iterations" in arguments:
        assert read.max_num_iterations == int(arguments[arguments.index("--max-num-iterations") + 1])
    with pytest.raises(SystemExit):
        tyro.cli(nerfstudio_commands[program], args=[*arguments, "--no-such-option", "1"])


def documented_messages() -> list[str]:
    """What docs/troubleshooting.md says that people see: the quoted sentences of its first column."""
    rows = [
        line.split("|")[1] for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if "|" in line
    ]
    return [message for row in rows for message in re.findall(r"`([^`]* [^`]*)`", row)]


@pytest.mark.parametrize("message", documented_messages())
def test_a_documented_message_is_ours_and_seen_in_a_test(message):
    def holds(folder: Path) -> bool:
        return any(message in path.read_text() for path in folder.rglob("*.py") if path != Path(__file__))

    assert holds(ROOT / "da3_splat"), f"nothing says {message!r}"
    assert holds(ROOT / "tests"), f"no test sees {message!r}"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.png")), ids=lambda path: path.name)
def test_pictures_are_light(path):
    assert path.stat().st_size < 500_000


def test_the_pages_build_without_a_network(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "site" / "quick_start.html").read_text()
    assert "Exit codes" in page and "viewer.png" in page
    assert "fonts.googleapis" not in page and "fonts.gstatic" not in page
    api = (tmp_path / "site" / "python.html").read_text()
    assert "world_to_camera" in api and "load_model" in api
    assert not re.search(r'<(?:script|link)[^>]+(?:src|href)="https?://(?!squidfunk)', page)
