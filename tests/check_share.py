"""Which lines of a file check arguments and word messages, and which are code; and which files
are there for checks.

python tests/check_share.py vdiff
"""

import ast
from collections.abc import Iterator
from pathlib import Path

CALLS = ("require", "refuse", "check")  # a call of such a name alone is a check
LINES = set[int]


def lines_of(node: ast.AST) -> LINES:
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    return set(range(first, node.end_lineno + 1))


def docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first


def code_lines(source: str, tree: ast.AST) -> LINES:
    """Lines that are no blank, comment or docstring."""
    texts = {line for doc in docstrings(tree) for line in lines_of(doc)}
    rows = enumerate(source.splitlines(), 1)
    full = {i for i, row in rows if row.strip() and not row.strip().startswith("#")}
    return full - texts


def called(node: ast.AST) -> str:
    function = node.func if isinstance(node, ast.Call) else None
    name = getattr(function, "attr", getattr(function, "id", ""))
    return str(name)


def is_check(node: ast.stmt) -> bool:
    """Whether a statement does nothing but check."""
    if isinstance(node, ast.Raise | ast.Assert):
        return True
    if isinstance(node, ast.Expr):
        return called(node.value).lstrip("_").startswith(CALLS)
    if isinstance(node, ast.If | ast.For | ast.With):
        return all(is_check(one) for one in (*node.body, *getattr(node, "orelse", ())))
    return False


def rules_of(tree: ast.AST) -> set[str]:
    """The functions that stand in a list of rules."""
    lists = [
        k.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Call)
        for k in n.keywords
        if k.arg == "rules"
    ]
    return {n.id for one in lists for n in ast.walk(one) if isinstance(n, ast.Name)}


def check_lines(tree: ast.Module, rules: set[str]) -> LINES:
    """Raises, their conditions and texts, rules, `__validate__`, constraints and decorators."""
    found: LINES = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if node.body[0] in set(docstrings(tree)) else node.body
            alone = bool(body) and all(is_check(one) for one in body)
            if alone or node.name in rules or node.name == "__validate__":
                found |= lines_of(node)
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and called(decorator) == "validated":
                    found |= set(range(decorator.lineno, decorator.end_lineno + 1))
        elif (isinstance(node, ast.stmt) and is_check(node)) or (
            isinstance(node, ast.Subscript) and "Annotated" in ast.dump(node.value)
        ):
            found |= lines_of(node)
    return found | texts(tree, found)


def texts(tree: ast.Module, found: LINES) -> LINES:
    """Assignments of what only checks read."""
    more: LINES = set()
    while True:
        reads: dict[str, list[bool]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                reads.setdefault(node.id, []).append(node.lineno in found | more)
        new = set(more)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                names = [
                    n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)
                ]
                if names and all(name in reads and all(reads[name]) for name in names):
                    new |= lines_of(node)
        if new == more:
            return more
        more = new


def shares(root: Path) -> dict[str, tuple[int, int]]:
    """Of each file below `root`: lines that check, and lines of code."""
    files = {path: path.read_text(encoding="utf-8") for path in sorted(root.rglob("*.py"))}
    trees = {path: ast.parse(source) for path, source in files.items()}
    rules = {name for tree in trees.values() for name in rules_of(tree)}
    found = {}
    for path, tree in trees.items():
        code = code_lines(files[path], tree)
        found[str(path.relative_to(root))] = len(check_lines(tree, rules) & code), len(code)
    return found


def checking_functions(tree: ast.Module) -> LINES:
    """Lines of constraints, f(value, argument, given), and of functions that are named as
    checks."""
    found: LINES = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            constraint = [a.arg for a in node.args.args][-2:] == ["argument", "given"]
            if constraint or node.name.lstrip("_").startswith(CALLS):
                found |= lines_of(node)
    return found


def check_files(root: Path) -> dict[str, int]:
    """Lines of code of each private file below `root` that is there for checks: it has the
    decorator itself, or more than half of its lines beside imports check."""
    files = {path: path.read_text(encoding="utf-8") for path in sorted(root.rglob("_[a-z]*.py"))}
    trees = {path: ast.parse(source) for path, source in files.items()}
    rules = {name for path in root.rglob("*.py") for name in rules_of(ast.parse(path.read_text()))}
    found = {}
    for path, tree in trees.items():
        code = code_lines(files[path], tree)
        imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
        beside = code.difference(*map(lines_of, imports))
        checks = (check_lines(tree, rules) | checking_functions(tree)) & beside
        defines = any(isinstance(n, ast.FunctionDef) and n.name == "validated" for n in tree.body)
        if defines or 2 * len(checks) > len(beside):
            found[str(path.relative_to(root))] = len(code)
    return found


if __name__ == "__main__":
    import sys

    for name, (checks, code) in shares(Path(sys.argv[1])).items():
        print(f"{name:40} {checks:5} {code:5} {100 * checks / max(code, 1):5.1f} %")
    print("\nlines of code in files of checks")
    for name, code in (files := check_files(Path(sys.argv[1]))).items():
        print(f"{name:40} {code:5}")
    print(f"{'together':40} {sum(files.values()):5}")
