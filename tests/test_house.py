"""The house rules that a machine can check: exports, packaging, import direction, light start."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import keyword
import os
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import probekit
from probekit.cli.main import cli
from probekit.errors import ProbekitError
from probekit.extras import DISTRIBUTION, EXTRAS, both_installed, need

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = sorted(
    [*ROOT.glob("activations/*.py"), *ROOT.glob("cli/*.py"), *ROOT.glob("probekit/*.py")]
    + [
        path
        for pattern in ("probekit/*/*.py", "probekit/*/*/*.py")
        for path in ROOT.glob(pattern)
        if path.relative_to(ROOT).parts[1] not in ("activations", "cli")
    ]
)
PACKAGES = sorted(set(PYPROJECT["tool"]["setuptools"]["packages"]))

# Lower may not import higher; equal may import each other.
LEVELS = {
    "probekit.errors": 0,
    "probekit.excel": 1,
    "probekit.extras": 1,
    "probekit.safe": 0,
    "probekit.strings": 0,
    "probekit.kinds": 0,
    "probekit.settings": 0,
    "probekit.files": 1,
    "probekit.arrow_columns": 1,
    "probekit.json_lines": 1,
    "probekit.separated": 0,
    "probekit.sidecars": 0,
    "probekit.sliced": 0,
    "probekit.output_tables": 1,
    "probekit.groups": 1,
    "probekit.states": 1,
    "probekit.tables": 1,
    "probekit.data": 2,
    "probekit.joins": 1,
    "probekit.tasks": 3,
    "probekit.sources": 4,
    "probekit.activations": 5,
    "probekit.cuts": 5,
    "probekit.annotators": 6,
    "probekit.label_columns": 6,
    "probekit.labelled_rows": 6,
    "probekit.labels": 6,
    "probekit.metrics": 6,
    "probekit.verdicts": 6,
    "probekit.probes": 7,
    "probekit.students": 7,
    "probekit.cleaning": 8,
    "probekit.experiments": 9,
    "probekit.reports": 9,
    "probekit.columns": 1,
    "probekit.cleaned": 10,
    "probekit.cli": 11,
}
HEAVY = (
    *("torch", "transformers", "datasets", "sklearn", "faiss", "pandas", "pyarrow", "matplotlib"),
    *("pydantic", "importlib.metadata"),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "probekit" else ("probekit", *parts)
    return ".".join(parts).removesuffix(".__init__")


def level(module: str) -> int | None:
    matches = [name for name in LEVELS if module == name or module.startswith(name + ".")]
    return LEVELS[max(matches, key=len)] if matches else None


def imports_of(tree: ast.AST) -> list[str]:
    result = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            result += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            result.append(str(node.module))
    return result


def run_imports(tree: ast.AST) -> set[str]:
    """Modules that are imported when a file runs, late imports in functions too; not for types."""
    result: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            result |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        result |= run_imports(node)
    return result


def test_no_import_goes_round_in_a_circle() -> None:
    """Not even inside a folder."""
    trees = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    graph = {name: run_imports(tree) & (trees.keys() - {name}) for name, tree in trees.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("probekit.errors") < order.index("probekit.cli.main")
    graph["probekit.errors"] = {"probekit.cli.main"}  # the control
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph).static_order())


def test_packages_in_pyproject_are_those_of_the_tree() -> None:
    assert sorted({module_name(p) for p in SOURCES if p.name == "__init__.py"}) == PACKAGES


@pytest.mark.parametrize("name", ["activations", "cli"])
def test_packaging_links_are_relative_and_lead_to_the_folder(name: str) -> None:
    link = ROOT / "probekit" / name
    assert os.readlink(link) == f"../{name}"
    assert (link / "__init__.py").samefile(ROOT / name / "__init__.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_exports_are_sorted_and_exist(package: str) -> None:
    module = importlib.import_module(package)
    exported = getattr(module, "__all__", [])
    assert list(exported) == sorted(exported)
    for name in exported:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_no_export_has_the_name_of_a_module_beside_it(package: str) -> None:
    """Importing that module would put it in the place of what is exported."""
    module = importlib.import_module(package)
    folder = Path(str(module.__file__)).parent
    late = getattr(module, "_HOMES", {})
    assert not [name for name in late if (folder / f"{name}.py").exists()]


def test_extract_is_the_function_wherever_it_comes_from() -> None:
    code = (
        "from probekit import extract\n"
        "from probekit.activations import extract as same\n"
        "print(callable(extract) and extract is same)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_public_api_is_what_it_was() -> None:
    import probekit

    assert sorted(probekit._HOMES) == list(probekit.__all__) == dir(probekit)
    assert {"ActivationStore", "KNNProbe", "LogisticProbe", "TopoFilterProbe", "Verdicts"} <= set(
        probekit.__all__
    )
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = probekit.nothing


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    own = level(module_name(path))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if own is None:  # the package itself and __main__ stand above everything
        return
    for imported in imports_of(tree):
        theirs = level(imported)
        assert theirs is None or theirs <= own, f"{module_name(path)} imports {imported}"


def test_import_direction_check_can_fail() -> None:
    assert level("probekit.cli.main") > level("probekit.probes.knn") > level("probekit.data")
    assert imports_of(ast.parse("from probekit.cli.main import cli")) == ["probekit.cli.main"]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_nothing_is_pickled(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\bimport (pickle|joblib|dill)\b|torch\.(save|load)\(|allow_pickle", text)


# What reads only files that come with probekit or that it has just made itself.
OWN_FILES = {
    "probekit.safe",
    "probekit.experiments.presets",
    "probekit.reports.page",
    "probekit.tasks.docstrings",
}
UNGUARDED = re.compile(
    r"\bjson\.loads?\(|\byaml\.(safe_|full_|unsafe_)?load(_all)?\(|\.(read_text|read_bytes|expanduser)\("
)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_of_strangers_are_read_through_probekit_safe(path: Path) -> None:
    if module_name(path) not in OWN_FILES:
        result = UNGUARDED.search(path.read_text(encoding="utf-8"))
        assert result is None, (
            f"{result} has no limits: use load_json, read_text, … of probekit.safe"
        )


def test_the_check_for_unguarded_reading_can_fail() -> None:
    for line in ("json.load(file)", "yaml.safe_load(text)", "path.read_text()", "p.expanduser()"):
        assert UNGUARDED.search(line)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from probekit.cli.main import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "extract" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_imports_no_command_and_says_what_each_does() -> None:
    from probekit.cli.main import COMMANDS

    modules = {
        name: f"probekit.cli.{name.replace('-', '_')}{'_' * keyword.iskeyword(name)}"
        for name in COMMANDS
    }
    code = (
        "import sys\n"
        "from probekit.cli.main import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        f"print([m for m in {[*modules.values()]!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name, module in modules.items():
        command = importlib.import_module(module).command
        assert " ".join(str(command.help).split("\n\n")[0].split()) == COMMANDS[name]


def test_help_fits_a_terminal_of_80_columns() -> None:
    from probekit.cli.main import COMMANDS

    done = subprocess.run(
        [sys.executable, "-m", "probekit", "--help"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    for name, line in COMMANDS.items():
        assert f"  {name:11}  {line}" in lines, "the line is cut or wrapped"


def test_heavy_import_check_can_fail() -> None:
    code = f"import sys, sklearn\nprint([m for m in {HEAVY!r} if m in sys.modules])\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sklearn" in done.stdout


def load_script(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_line_page_is_up_to_date() -> None:
    script = load_script(ROOT / "docs" / "make_cli.py")
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == script.render(), "run `make docs`"


def test_figures_of_the_pages_come_from_the_benchmarks() -> None:
    """And each stands in one page."""
    script = load_script(ROOT / "docs" / "make_tables.py")
    names = []
    for page in script.pages():
        text = page.read_text(encoding="utf-8")
        assert text == script.render(text), f"{page.name}: run `make docs`"
        names += script.names_in(text)
    assert sorted(names) == sorted(script.BLOCKS)
    stale = "<!-- benchmarks: advice-classes -->\n| 99 |\n<!-- end -->"
    assert script.render(stale) != stale  # the control


def test_tables_of_two_classes_and_of_more_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script(ROOT / "docs" / "make_tables.py")
    pairs = (("trust", "trust-classes"), ("certify", "certified-classes"))
    for (name, many), block in zip(pairs, ("trust", "certified"), strict=True):
        lines = script.rows_of(name)
        two = [line for line in lines if line["task"] != "docstrings-12"]
        assert 0 < len(two) < len(lines)
        before = script.BLOCKS[block](), script.BLOCKS[many]()
        with monkeypatch.context() as patch:
            patch.setattr(script, "rows_of", lambda _, two=two: two)
            assert script.BLOCKS[block]() == before[0]
            renamed = [{**line, "task": "docstrings-12"} for line in two]
            patch.setattr(script, "rows_of", lambda _, renamed=renamed: renamed)
            assert script.BLOCKS[many]() != before[1]  # the control


def test_links_of_the_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    assert pages
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                path = page.parent / target
                # The site makes a page of each notebook.
                assert path.exists() or path.with_suffix(".ipynb").exists(), (
                    f"{page.name} links {target}"
                )


def test_constraints_pin_what_pyproject_admits() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    assert pins["torch"] == "2.13.0"
    extras = PYPROJECT["project"]["optional-dependencies"]
    all_extras = [line for lines in extras.values() for line in lines]
    for requirement in [*PYPROJECT["project"]["dependencies"], *all_extras]:
        if requirement.startswith(DISTRIBUTION):
            continue
        name = re.split(r"[<>=;\s\[]", requirement)[0].lower()
        if "faiss-cpu" not in requirement:
            assert name in pins, f"{name} has no pin in constraints.txt"


def test_what_is_imported_is_declared() -> None:
    other_names = {
        "faiss": "faiss-gpu",
        "pydantic_core": "pydantic",  # it pins its core
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
    }
    declared = {re.split(r"[<>=;\s]", r)[0].lower() for r in PYPROJECT["project"]["dependencies"]}
    declared |= {*EXTRAS, "pandas"}  # crowd-kit takes data frames
    for path in SOURCES:
        for module in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            name = module.partition(".")[0]
            if name != "probekit" and name not in sys.stdlib_module_names:
                assert other_names.get(name, name) in declared, f"{path} imports {name}"


# docs/style.md has them, and says what to write instead.
WORN = re.compile(r"gone on with|is no [A-Za-z0-9 ]*file|told by|maps no more|without a better one")


def test_worn_phrases_are_not_written_again() -> None:
    own = {Path(__file__), ROOT / "docs" / "style.md"}
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.py"), *SOURCES]
    for path in set(pages) - own:
        result = WORN.search(path.read_text(encoding="utf-8"))
        assert result is None, f"{path.relative_to(ROOT)}: {result}"
    assert WORN.search((ROOT / "docs" / "style.md").read_text(encoding="utf-8"))  # the control


def test_the_version_has_one_home() -> None:
    """The package says it; what is built reads it there, and what is written names it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "probekit.__version__"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == probekit.__version__


def test_extras_name_what_only_some_commands_need() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION
    extras = project["optional-dependencies"]
    for package, (extra, _) in EXTRAS.items():
        name = {"crowdkit": "crowd-kit"}.get(package, package.replace("_", "-"))
        assert any(re.match(name, line) for line in extras[extra]), package
    assert extras["all"] == [f"{DISTRIBUTION}[annotators,chess,excel,finetune,report]"]
    installed = {re.split(r"[>=;]", line)[0] for line in project["dependencies"]}
    assert not installed & {"chess", "crowd-kit", "matplotlib", "openpyxl", "peft"}


@pytest.mark.parametrize("package", list(EXTRAS))
def test_without_an_extra_one_sentence_names_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(package)  # it is installed here
    monkeypatch.setattr("probekit.extras.find_spec", lambda _: None)
    with pytest.raises(ProbekitError, match=rf"{package}, which is not installed; `pip install"):
        need(package)


def test_another_project_of_this_name_in_the_same_folder_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{DISTRIBUTION.replace('-', '_')}-{probekit.__version__}.dist-info").mkdir()
    (tmp_path / "probekit_extra-1.0.dist-info").mkdir()
    assert both_installed(tmp_path) is None
    assert both_installed(tmp_path / "missing") is None
    (tmp_path / "probekit-0.3.1.dist-info").mkdir()
    monkeypatch.setattr(probekit, "__file__", str(tmp_path / "probekit" / "__init__.py"))
    result = CliRunner().invoke(cli, ["completion", "bash"])
    assert result.exit_code == 0
    assert result.stderr.startswith("Warning: The distributions probekit (another project) and ")
    assert "`pip uninstall probekit`" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Warning" not in result.stdout
