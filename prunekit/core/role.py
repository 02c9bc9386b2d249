"""What a channel's entries are to a module: outputs, inputs, or positions of its own tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Role:
    """Where channels lie in one module, written as a short text in files.

    Along the module's output axis (``out``), its input axis (``in``) or, where one entry is both
    (depthwise convolutions, norms, PReLU), its only channel axis (``both``); along another axis of
    one of its tensors, such as a layer scale's ``gamma.0``; or in a number that it keeps, such as
    ``#num_heads``. ``~out`` names output channels of which none goes, but whose values shrink with
    the root of the group's width: queries of an attention whose own scale would grow otherwise.
    """

    side: Literal["out", "in", "both", ""] = ""
    scaled: bool = False
    tensor: str = ""
    axis: int = 0
    attribute: str = ""

    @classmethod
    def of_tensor(cls, tensor: str, axis: int) -> Role:
        """Along an axis of a tensor of the module's own."""
        return cls(tensor=tensor, axis=axis)

    @classmethod
    def of_number(cls, attribute: str) -> Role:
        """In a number that the module keeps."""
        return cls(attribute=attribute)

    @classmethod
    def parse(cls, text: str) -> Role:
        """From its text in files; raises ValueError where that names none."""
        for role in (OUT, IN, BOTH, SCALED_OUT):
            if text == str(role):
                return role
        if text.startswith("#") and len(text) > 1:
            return cls.of_number(text[1:])
        tensor, _, axis = text.rpartition(".")
        if not (tensor and axis.isdecimal() and axis.isascii()):
            raise ValueError(f"{text!r} is no role of channels in a module")
        return cls.of_tensor(tensor, int(axis))

    def __str__(self) -> str:
        """Its text in files."""
        if self.side:
            return f"~{self.side}" if self.scaled else self.side
        return f"#{self.attribute}" if self.attribute else f"{self.tensor}.{self.axis}"

    @property
    def sides(self) -> tuple[Literal["out", "in"], ...]:
        """On which of the module's sides removed channels make it narrower."""
        if self.scaled or not self.side:
            return ()
        return ("in", "out") if self.side == "both" else (self.side,)

    @property
    def is_output(self) -> bool:
        """Whether channels are the module's outputs, which go with them."""
        return "out" in self.sides

    @property
    def makes_channels(self) -> bool:
        """Whether they come from here: outputs, first axes of tensors, and numbers that count."""
        if self.side:
            return self.side != "in"
        return bool(self.attribute) or self.axis == 0


OUT = Role("out")
IN = Role("in")
BOTH = Role("both")
SCALED_OUT = Role("out", scaled=True)
