"""What a chat template reads, found in its syntax tree: a message's content as parts, and tools.

A template reads parts if it iterates over the content, or reads the text or type of one of its
elements. Names that hold a content are followed through `set` and the parameters of macros.
"""

from jinja2 import nodes

CONTENT = "content"
PART_FIELDS = ("text", "type")


def reads_tools(template: nodes.Template) -> bool:
    """Say whether the template shows the tools of a request."""
    return any(name.name == "tools" for name in template.find_all(nodes.Name))


def reads_parts(template: nodes.Template) -> bool:
    """Say whether the template takes a list of text parts as the content of a message."""
    names = _content_names(template)
    if any(_is_content(loop.iter, names) for loop in template.find_all(nodes.For)):
        return True
    reads = template.find_all((nodes.Getattr, nodes.Getitem))
    return any(_reads_part(read, names) for read in reads)


def _reads_part(read: nodes.Expr, names: frozenset[str]) -> bool:
    """Say whether an expression is the text or type of one element, as in `content[0].text`."""
    if not isinstance(read, nodes.Getattr | nodes.Getitem) or _field(read) not in PART_FIELDS:
        return False
    element = read.node
    if not isinstance(element, nodes.Getitem) or not isinstance(element.arg, nodes.Const):
        return False
    return isinstance(element.arg.value, int) and _is_content(element.node, names)


def _content_names(template: nodes.Template) -> frozenset[str]:
    """Return the names that hold a content somewhere, to a fixpoint."""
    names: frozenset[str] = frozenset()
    while True:
        found = names | _assigned(template, names) | _passed(template, names)
        if found == names:
            return names
        names = found


def _assigned(template: nodes.Template, names: frozenset[str]) -> frozenset[str]:
    return frozenset(
        assign.target.name
        for assign in template.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names)
    )


def _passed(template: nodes.Template, names: frozenset[str]) -> frozenset[str]:
    """Return the parameters of macros that are called with a content."""
    macros = {macro.name: macro for macro in template.find_all(nodes.Macro)}
    found = set()
    for call in template.find_all(nodes.Call):
        macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
        if macro is None:
            continue
        given = zip(macro.args, call.args, strict=False)
        found |= {name.name for name, value in given if _is_content(value, names)}
        found |= {pair.key for pair in call.kwargs if _is_content(pair.value, names)}
    return frozenset(found)


def _is_content(node: nodes.Node | None, names: frozenset[str]) -> bool:
    """Say whether an expression is a content, perhaps sliced, filtered or one of several."""
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr | nodes.Getitem):
        is_slice = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        return _field(node) == CONTENT or (is_slice and _is_content(node.node, names))
    if isinstance(node, nodes.Filter):
        return _is_content(node.node, names)
    if isinstance(node, nodes.CondExpr):
        return _is_content(node.expr1, names) or _is_content(node.expr2, names)
    if isinstance(node, nodes.And | nodes.Or):
        return _is_content(node.left, names) or _is_content(node.right, names)
    return isinstance(node, nodes.Call) and _is_content_by_get(node)


def _is_content_by_get(call: nodes.Call) -> bool:
    """Say whether a call is `message.get('content')`."""
    is_get = isinstance(call.node, nodes.Getattr) and call.node.attr == "get"
    first = call.args[0] if call.args else None
    return is_get and isinstance(first, nodes.Const) and first.value == CONTENT


def _field(node: nodes.Node) -> object:
    """Return the name after the dot or in the brackets, None for anything else."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return node.arg.value
    return None
