"""A drawing made of characters: braille dots where the terminal knows them, else one per cell."""

from __future__ import annotations

from dataclasses import dataclass, field

# Bits of a braille cell by (column, row): Unicode's block "Braille Patterns", U+2800 on.
_BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BRAILLE_BLANK = 0x2800


@dataclass
class Cell:
    """What stands in one place.

    Attributes:
        dots: the braille dots that are set.
        character: what stands there instead; empty: the dots.
        style: Rich's, of the last that drew here.
    """

    dots: int = 0
    character: str = ""
    style: str = ""


@dataclass
class Canvas:
    """A drawing; (0, 0) is its lower left corner, 1 the upper and the right edge.

    Attributes:
        width: in cells.
        height: in cells.
        braille: draw lines with 2 x 4 dots to a cell, else with a dot to a cell.
    """

    width: int
    height: int
    braille: bool
    cells: list[list[Cell]] = field(init=False)

    def __post_init__(self) -> None:
        self.cells = [[Cell() for _ in range(self.width)] for _ in range(self.height)]

    def column(self, x: float) -> int:
        """Return in which column a place is."""
        return min(self.width - 1, max(0, int(x * self.width)))

    def row(self, y: float) -> int:
        """Return in which row a place is, from the top."""
        return min(self.height - 1, max(0, int((1 - y) * self.height)))

    def mark(self, x: float, y: float, character: str, style: str) -> None:
        """Put a character at a place."""
        cell = self.cells[self.row(y)][self.column(x)]
        cell.character, cell.style = character, style

    def rule(self, y: float, character: str, style: str) -> None:
        """Draw a line from the left to the right, behind what is drawn later."""
        for cell in self.cells[self.row(y)]:
            cell.character, cell.style = character, style

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        """Draw a line between two places."""
        across, down = (2, 4) if self.braille else (1, 1)
        (x1, y1), (x2, y2) = start, end
        steps = max(
            int(abs(x2 - x1) * self.width * across), int(abs(y2 - y1) * self.height * down), 1
        )
        for i in range(steps + 1):
            part = i / steps
            self._dot(x1 + (x2 - x1) * part, y1 + (y2 - y1) * part, across, down, style)

    def text(self) -> list[list[tuple[str, str]]]:
        """Return the rows from the top: characters with their styles."""
        return [[(self._written(cell), cell.style) for cell in row] for row in self.cells]

    def _dot(self, x: float, y: float, across: int, down: int, style: str) -> None:
        column = min(self.width * across - 1, max(0, int(x * self.width * across)))
        row = min(self.height * down - 1, max(0, int((1 - y) * self.height * down)))
        cell = self.cells[row // down][column // across]
        cell.character = "" if self.braille else "."
        cell.dots |= _BRAILLE[column % across][row % down]
        cell.style = style

    def _written(self, cell: Cell) -> str:
        if cell.character:
            return cell.character
        return chr(_BRAILLE_BLANK + cell.dots) if cell.dots else " "
