"""What a mutant is: one change of one expression of the core, in the code of its function."""

import ast
import gc
import types
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = (  # everything before training: modules, and rooms with all of their files
    *("gaussian", "times", "resampling", "profile", "variance", "parameterization", "prediction"),
    *("reverse", "weighting", "bound", "decoder", "denoiser", "oracle", "_mixture", "loss"),
    *("losses", "chain", "_path_bound", "flow", "objective", "groups", "diagnosis", "schedule"),
    *("sampling", "likelihood", "discrete", "masks", "_partial", "_diffusion"),
)

OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
}
COMPARISONS = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
NEIGHBORS = {
    "log1p": "log", "expm1": "exp", "exp": "expm1", "sqrt": "square", "square": "sqrt",
    "sigmoid": "tanh", "logsigmoid": "softplus",
    "softplus": "logsigmoid", "sin": "cos", "cos": "sin", "cumsum": "cumprod", "amax": "amin",
    "sum": "mean", "mean": "sum", "maximum": "minimum",
}  # fmt: skip
# calls whose arguments are texts and limits
SILENT = {"require", "warn", "extra_repr", "did_you_mean"}


def files_of(module: Path) -> list[Path]:
    return sorted(module.glob("*.py")) if module.is_dir() else [module.with_suffix(".py")]


def sites(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """The nodes of formulas, each with a name of what can be changed there: all within
    functions."""

    def visit(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.Call):
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if called in SILENT or called.startswith(("check", "_check", "_refuse", "assert")):
                return
            if called in NEIGHBORS and isinstance(node.func, ast.Attribute):
                yield node.func, "call"
        if isinstance(node, ast.If) and "validation_enabled()" in ast.unparse(node.test):
            return
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not _is_text(node.left):
            yield node, "operator"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node, "sign"
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield node, "comparison"
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, "number"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name in ("__repr__", "extra_repr", "__validate__") or node.name.startswith(
                ("check", "_check", "_refuse", "_warn")
            ):
                return
            for statement in node.body:
                yield from visit(statement)
            return
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from visit(node.value)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.Module):
            for statement in node.body:
                if isinstance(statement, ast.FunctionDef):
                    yield from visit(statement)


def statements(tree: ast.AST) -> set[int]:
    """The first lines of statements within functions, without docstrings and abstract bodies."""
    found = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and not _is_abstract(function):
            inside = [node for one in function.body for node in ast.walk(one)]
            found |= {node.lineno for node in inside if isinstance(node, ast.stmt) and _runs(node)}
    return found


def _is_abstract(function: ast.FunctionDef) -> bool:
    names = (ast.unparse(decorator) for decorator in function.decorator_list)
    return any(name.endswith(("abstractmethod", "overload")) for name in names)


def _runs(node: ast.stmt) -> bool:
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return not text and not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr | ast.List) or isinstance(
        getattr(node, "value", None), str
    )


def change(node: ast.AST, kind: str) -> None:
    if kind == "operator":
        assert isinstance(node, ast.BinOp)
        node.op = OPERATORS[type(node.op)]()
    elif kind == "comparison":
        assert isinstance(node, ast.Compare)
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif kind == "call":
        assert isinstance(node, ast.Attribute)
        node.attr = NEIGHBORS[node.attr]
    elif kind == "number":
        assert isinstance(node, ast.Constant)
        node.value = (
            node.value + 1 if type(node.value) is int else 1.5 * node.value if node.value else 0.5
        )
    else:
        assert isinstance(node, ast.UnaryOp)
        node.op = ast.UAdd()


class Mutant:
    """One change of one expression, as the line it changes and as a compiled module."""

    def __init__(self, path: str, index: int) -> None:
        self.path = path
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        node, self.kind = list(sites(tree))[index]
        statement = self._statement(tree, node)
        before = ast.unparse(statement)
        self.lines = range(node.lineno, node.end_lineno + 1)  # type: ignore[attr-defined]
        self.around = range(statement.lineno, statement.end_lineno + 1)  # type: ignore[attr-defined]
        change(node, self.kind)
        self.words = (
            f"{path}:{node.lineno} ({self.kind})\n  - {self._short(before)}\n  + "
            f"{self._short(ast.unparse(statement))}"
        )  # type: ignore[attr-defined]
        self.code = compile(tree, str(ROOT / path), "exec")

    @staticmethod
    def _short(text: str) -> str:
        return text.split("\n")[0][:200]

    @staticmethod
    def _statement(tree: ast.AST, node: ast.AST) -> ast.AST:
        """The innermost statement around a node."""
        found = tree
        for one in ast.walk(tree):
            if (
                isinstance(one, ast.stmt)
                and one.lineno <= node.lineno <= (one.end_lineno or 0)
                and not isinstance(one, ast.FunctionDef | ast.ClassDef)
            ):
                found = one
        return found

    def install(self) -> None:
        """Exchange the code of every function of its module in this process."""
        codes = {(code.co_qualname, code.co_firstlineno): code for code in _codes(self.code)}
        for function in gc.get_objects():
            if (
                type(function) is types.FunctionType
                and function.__code__.co_filename == self.code.co_filename
            ):
                function.__code__ = codes[
                    function.__code__.co_qualname, function.__code__.co_firstlineno
                ]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
