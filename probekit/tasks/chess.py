"""Tasks from Lichess puzzles: is this move the solution, and what is the solution.

A puzzle's FEN is the position *before* the opponent's move: the position to solve comes after the
first of ``Moves``, and the second is the solution. In Lichess puzzles the solution is the only good
move, except for mates in one, where any mate is right.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from probekit.data import Rows
from probekit.errors import DataError
from probekit.extras import need
from probekit.tasks.hub import read_hub
from probekit.tasks.registry import Task, balanced, draw

if TYPE_CHECKING:
    import chess  # an extra: imported where it is used

__all__ = [
    "SPLITS",
    "TASKS",
    "Puzzle",
    "alternative",
    "game_text",
    "parse_puzzle",
    "position_text",
    "short_san",
]

HUB = "Lichess/chess-puzzles"
COLUMNS = ("PuzzleId", "FEN", "Moves")
SPLITS = {"weak": 5000, "student": 5000, "validation": 1000, "test": 4000}
"""Maximum number of rows of each split. A puzzle's id decides its split, in these proportions."""

# A file with a larger share of unusable puzzles has another format (FEN after the move?).
BROKEN_SHARE = 0.5
SIDES = {True: "White", False: "Black"}  # as python-chess has them


@dataclass(frozen=True)
class Puzzle:
    """A position to solve."""

    id: str
    fen: str
    """Position before the opponent's move."""
    last: chess.Move
    """The opponent's move."""
    solution: chess.Move

    @property
    def before(self) -> chess.Board:
        """A new board before the opponent's move."""
        import chess

        return chess.Board(self.fen)

    @property
    def board(self) -> chess.Board:
        """A new board of the position to solve."""
        board = self.before
        board.push(self.last)
        return board


def parse_puzzle(name: str, fen: Any, moves: Any) -> Puzzle | str:
    """Read a puzzle in Lichess' format, or return in a few words why it is not one.

    ``moves`` are UCI moves with spaces between; the first is the opponent's.
    """
    need("chess")
    import chess

    try:
        board = chess.Board(str(fen))
    except ValueError:
        return "no position"
    if not board.is_valid():
        return "no position"
    line = str(moves or "").split()
    if len(line) < 2:
        return "fewer than two moves"
    try:
        line_moves = [board.push_uci(text) for text in line]
    except ValueError:
        return "an illegal move"
    if not all(line_moves):  # "0000", the null move, raises no error
        return "an illegal move"
    return Puzzle(str(name), str(fen), line_moves[0], line_moves[1])


def short_san(board: chess.Board, move: chess.Move) -> str:
    """Return a move in SAN without the marks of check and mate, which would reveal the answer."""
    return board.san(move).rstrip("+#")


def position_text(puzzle: Puzzle) -> str:
    """Describe the position to solve: its FEN, the opponent's move, and the side to move."""
    board = puzzle.board
    return (
        f"Position: {board.fen()}\n"
        f"Last move: {puzzle.before.san(puzzle.last)}\n"
        f"{SIDES[board.turn]} to move."
    )


def game_text(puzzle: Puzzle) -> str:
    """Return the moves so far in PGN, up to the place of the solution."""
    before, board = puzzle.before, puzzle.board
    number = f"{before.fullmove_number}{'.' if SIDES[before.turn] == 'White' else '...'}"
    text = f'[FEN "{puzzle.fen}"]\n\n{number} {before.san(puzzle.last)}'
    return f"{text} {board.fullmove_number}." if SIDES[board.turn] == "White" else text


def alternative(puzzle: Puzzle, *, seed: int) -> chess.Move | None:
    """Draw a legal move that is not the solution; None without any.

    Mates are left out, as they are always right, and so is the solution with a promotion to another
    piece, which is often as good.
    """
    board, right = puzzle.board, puzzle.solution
    others = [
        move
        for move in board.legal_moves
        if (move.from_square, move.to_square) != (right.from_square, right.to_square)
    ]
    others.sort(key=lambda move: draw(f"{puzzle.id}\x1f{move.uci()}", seed=seed, use="alternative"))
    return next((move for move in others if not _mates(board, move)), None)


def _mates(board: chess.Board, move: chess.Move) -> bool:
    board.push(move)
    mate = board.is_checkmate()
    board.pop()
    return mate


def _has_other_mate(puzzle: Puzzle) -> bool:
    board = puzzle.board
    return _mates(board, puzzle.solution) and any(
        _mates(board, move) for move in board.legal_moves if move != puzzle.solution
    )


# Suffix of the task -> function for the position, text before an answer, text with a candidate.
TEXTS: dict[str, tuple[Callable[[Puzzle], str], str, str]] = {
    "": (position_text, "\nBest move:", "\nCandidate: {}"),
    "-pgn": (game_text, "", " {}"),
}


def _binary_rows(
    puzzles: Iterator[Puzzle], left_out: Counter[str], *, size: int, seed: int, form: str
) -> dict[str, list[Any]]:
    """Return one candidate per puzzle, right or wrong by a draw; equally many of both."""
    write, _, ending = TEXTS[form]
    rows: list[tuple[str, str, int]] = []
    counts = [0, 0]
    for puzzle in puzzles:
        label = (draw(puzzle.id, seed=seed, use="label") >> 56) % 2
        if counts[label] == size // 2:
            if min(counts) == size // 2:
                break
            continue
        other = alternative(puzzle, seed=seed)
        if other is None:
            left_out["no other move"] += 1
            continue
        move = puzzle.solution if label else other
        text = write(puzzle) + ending.format(short_san(puzzle.board, move))
        rows.append((f"lichess-{puzzle.id}-{move.uci()}", text, label))
        counts[label] += 1
    kept = [rows[position] for position in balanced([label for _, _, label in rows], n_classes=2)]
    return {name: [row[i] for row in kept] for i, name in enumerate(("id", "text", "label"))}


def _move_rows(
    puzzles: Iterator[Puzzle], left_out: Counter[str], *, size: int, seed: int, form: str
) -> dict[str, list[Any]]:
    """Return the position as a prompt and the solution as its completion."""
    del seed  # only the order of the puzzles is drawn
    write, ending, _ = TEXTS[form]
    columns: dict[str, list[Any]] = {"id": [], "text": [], "completion": []}
    for puzzle in puzzles:
        if len(columns["id"]) == size:
            break
        if _has_other_mate(puzzle):
            left_out["several mates"] += 1
            continue
        columns["id"].append(f"lichess-{puzzle.id}")
        columns["text"].append(write(puzzle) + ending)
        columns["completion"].append(short_san(puzzle.board, puzzle.solution))
    return columns


def _load(
    split: str, seed: int, *, name: str, form: str, make: Callable[..., dict[str, list[Any]]]
) -> Rows:
    columns, positions = _by_split(os.environ.get("PROBEKIT_DATASETS"))
    ids = columns["PuzzleId"]
    order = sorted(
        positions[split], key=lambda position: draw(str(ids[position]), seed=seed, use="order")
    )
    left_out: Counter[str] = Counter()
    size = SPLITS[split]
    rows = make(_parsed(columns, order, left_out), left_out, size=size, seed=seed, form=form)
    reasons = ", ".join(f"{count} for {reason}" for reason, count in sorted(left_out.items()))
    unusable = sum(left_out.values())
    if not rows["id"] or unusable > BROKEN_SHARE * (unusable + len(rows["id"])):
        raise DataError(
            f"The split {split!r} of the task {name!r} has {len(rows['id'])} usable puzzles among "
            f"{len(order):,} of {HUB} ({reasons or 'none left out'}); it takes Lichess' format, "
            "where FEN is the position before the first of Moves, and needs a few hundred puzzles."
        )
    source = f"{name}@{split}"
    return Rows(rows, source=f"{source} ({unusable} left out: {reasons})" if unusable else source)


def _parsed(
    columns: Mapping[str, Sequence[Any]], order: Sequence[int], left_out: Counter[str]
) -> Iterator[Puzzle]:
    """Yield puzzles in order, parsed on demand: the hub has millions."""
    for position in order:
        puzzle = parse_puzzle(*(columns[name][position] for name in COLUMNS))
        if isinstance(puzzle, str):
            left_out[puzzle] += 1
        else:
            yield puzzle


@lru_cache(maxsize=1)
def _by_split(
    where: str | None,
) -> tuple[Mapping[str, Sequence[Any]], dict[str, list[int]]]:
    """Return the puzzles' columns, and the positions of each split, drawn from the puzzle's id."""
    del where  # only a key of the cache: another folder is another entry
    columns = read_hub(HUB, None, "train").columns
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise DataError(
            f"{HUB} has no column {missing[0]!r}; it has {', '.join(columns)}, and Lichess' format "
            f"has {', '.join(COLUMNS)}."
        )
    positions: dict[str, list[int]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for position, puzzle_id in enumerate(columns["PuzzleId"][:]):
        if str(puzzle_id) not in seen:
            seen.add(str(puzzle_id))
            positions[_split_of(str(puzzle_id))].append(position)
    return columns, positions


def _split_of(puzzle_id: str) -> str:
    left = draw(puzzle_id, seed=0, use="deal") % sum(SPLITS.values())
    for split, size in SPLITS.items():
        if left < size:
            return split
        left -= size
    raise AssertionError("a draw is below the sum of the sizes")


_FACTS: dict[str, Any] = {
    "source": f"hf:{HUB} (columns {', '.join(COLUMNS)})",
    "card": f"https://huggingface.co/datasets/{HUB}",
    "licence": "CC0-1.0",
    "splits": tuple(SPLITS),
    "halves": ("weak", "student"),
    "notes": "Splits are drawn from the PuzzleId, one row per puzzle.",
}
_SHOWN = {
    "": ("a position", "Position: {FEN to solve}\nLast move: {SAN}\n{White or Black} to move."),
    "-pgn": ("the moves so far in PGN", '[FEN "{FEN}"]\n\n{number} {last move} {number}'),
}

TASKS = tuple(
    task
    for form, (shown, prompt) in _SHOWN.items()
    for task in (
        Task(
            name=f"chess{form}",
            description=(
                f"Lichess puzzles: {shown} and a candidate move; is it the solution (1) or another "
                "legal move (0)?"
            ),
            classes=("wrong", "right"),
            prompt=prompt + TEXTS[form][2].format("{candidate}"),
            load=partial(_load, name=f"chess{form}", form=form, make=_binary_rows),
            **_FACTS,
        ),
        Task(
            name=f"chess-move{form}",
            description=(
                f"Lichess puzzles: {shown}; the completion is the solution's first move in SAN, "
                "without marks of check and mate."
            ),
            classes=(),
            kind="completion",
            prompt=prompt + TEXTS[form][1],
            load=partial(_load, name=f"chess-move{form}", form=form, make=_move_rows),
            **_FACTS,
        ),
    )
)
