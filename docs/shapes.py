"""An extension of griffe: annotations as the source has them.

A shape of jaxtyping is a string, which griffe would take for the names of types.
"""

import ast
from typing import Any

import griffe


class Shapes(griffe.Extension):
    """Replaces parsed annotations by their source."""

    def on_function_instance(
        self, *, node: ast.AST | griffe.ObjectNode, func: griffe.Function, **kwargs: Any
    ) -> None:
        """Of parameters and of what is returned."""
        del kwargs
        if not isinstance(node, ast.FunctionDef):
            return
        given = node.args
        for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
            if one is not None and one.annotation is not None:
                func.parameters[one.arg].annotation = ast.unparse(one.annotation)
        if node.returns is not None:
            func.returns = ast.unparse(node.returns)

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **kwargs: Any
    ) -> None:
        """Of attributes."""
        del kwargs
        if isinstance(node, ast.AnnAssign):
            attr.annotation = ast.unparse(node.annotation)
