from __future__ import annotations

import csv
import io
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chess
import chess.pgn
import numpy as np
import pytest

from probekit.errors import DataError
from probekit.labels import WeakLabels
from probekit.students.completion import completion_rows, exact_match
from probekit.students.config import FinetuneConfig
from probekit.students.finetune import finetune, training_rows
from probekit.students.generative import finetune_completion
from probekit.tables import Table
from probekit.tasks import chess as puzzles
from probekit.tasks import get_task
from probekit.tasks.chess import (
    Puzzle,
    alternative,
    game_text,
    parse_puzzle,
    position_text,
    short_san,
)

NAMES = ("chess", "chess-pgn", "chess-move", "chess-move-pgn")
# Black plays 1... e5; then White has Qh5 among many moves.
OPENING = ("rnbqkbnr/pppppppp/8/8/4P3/8/PPPP1PPP/RNBQKBNR b KQkq - 0 1", "e7e5 d1h5 b8c6")
# Black's king steps to h8; the rook mates on e8, and so does the queen.
TWO_MATES = ("6k1/5ppp/8/8/8/8/1Q6/K3R3 b - - 0 1", "g8h8 e1e8")
# Black's pawn moves; the pawn on b7 promotes on b8, or takes on a8.
PROMOTION = ("r7/1P4kp/8/8/8/8/8/1K6 b - - 0 1", "h7h6 b7a8q")
CASTLING = ("r3k2r/8/8/8/8/8/8/R3K2R b KQkq - 0 1", "a8b8 e1g1")
EN_PASSANT = ("4k3/3p4/8/4P3/8/8/8/4K3 b - - 0 1", "d7d5 e5d6")
# After Qg2+ the king can only take.
FORCED = ("8/8/8/8/8/6q1/k7/7K b - - 0 1", "g3g2 h1g2")


def puzzle(fen: str, moves: str, name: str = "p1") -> Puzzle:
    found = parse_puzzle(name, fen, moves)
    assert isinstance(found, Puzzle), found
    return found


def many_puzzles(count: int) -> list[dict[str, Any]]:
    """Puzzles from games of random moves: legal, if of no beauty."""
    rows = []
    for number in range(count):
        draw = random.Random(number)
        board = chess.Board()
        fens, line = [], []
        for _ in range(9 + number % 9):
            fens.append(board.fen())
            line.append(draw.choice(sorted(board.legal_moves, key=chess.Move.uci)).uci())
            board.push_uci(line[-1])
        name, moves = f"m{number:04}", " ".join(line[-3:])
        rows.append({"PuzzleId": name, "FEN": fens[-3], "Moves": moves, "Rating": 1500})
    return rows


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function that makes rows in the hub's schema what the tasks read."""

    def give(rows: list[dict[str, Any]]) -> None:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        monkeypatch.setattr(puzzles, "read_hub", lambda *_: Table(columns))
        puzzles._by_split.cache_clear()

    yield give
    puzzles._by_split.cache_clear()


def test_the_position_to_solve_comes_after_the_opponents_move() -> None:
    found = puzzle(*OPENING)
    assert found.board.turn == chess.WHITE
    assert found.board.piece_at(chess.E5) == chess.Piece.from_symbol("p")
    assert found.solution == chess.Move.from_uci("d1h5")
    assert position_text(found) == (
        "Position: rnbqkbnr/pppp1ppp/8/4p3/4P3/8/PPPP1PPP/RNBQKBNR w KQkq - 0 2\n"
        "Last move: e5\n"
        "White to move."
    )


def test_moves_so_far_are_pgn_that_a_reader_takes() -> None:
    found = puzzle(*OPENING)
    text = game_text(found)
    assert text == f'[FEN "{OPENING[0]}"]\n\n1... e5 2.'
    game = chess.pgn.read_game(io.StringIO(f"{text} {short_san(found.board, found.solution)}"))
    assert game is not None
    assert [move.uci() for move in game.mainline_moves()] == ["e7e5", "d1h5"]
    white_first = puzzle("4k3/8/8/8/8/8/8/R3K3 w - - 0 30", "a1a8 e8d7")
    assert game_text(white_first).endswith("\n\n30. Ra8+")  # Black's number is not written


@pytest.mark.parametrize(
    ("fen", "moves", "san"),
    [
        (*PROMOTION, "bxa8=Q"),
        (*CASTLING, "O-O"),
        (*EN_PASSANT, "exd6"),
        (*TWO_MATES, "Re8"),  # no mark of mate: it would tell right from wrong
        ("r7/1P4kp/8/8/8/8/8/1K6 b - - 0 1", "h7h6 b7b8n", "b8=N"),
        ("4k3/8/8/8/8/8/8/R3K3 b - - 0 1", "e8d7 a1a7", "Ra7"),  # nor of check
    ],
)
def test_moves_of_every_kind_are_written_in_san(fen: str, moves: str, san: str) -> None:
    found = puzzle(fen, moves)
    assert short_san(found.board, found.solution) == san
    assert found.board.parse_san(san) == found.solution


@pytest.mark.parametrize(
    ("fen", "moves", "reason"),
    [
        (OPENING[0], "e7e5", "fewer than two moves"),
        (OPENING[0], "", "fewer than two moves"),
        (OPENING[0], None, "fewer than two moves"),
        (OPENING[0], "e7e5 d1h6", "an illegal move"),
        (OPENING[0], "e7e5 d1h5 b8b3", "an illegal move"),
        (OPENING[0], "e7e5 0000", "an illegal move"),
        (OPENING[0], "e7e5 Qh5", "an illegal move"),
        (PROMOTION[0], "h7h6 b7a8", "an illegal move"),  # promotes to nothing
        ("8/8/8/8/8/8/8/8 w - - 0 1", "e2e4 e7e5", "no position"),
        ("not a position", "e2e4 e7e5", "no position"),
        (None, "e2e4 e7e5", "no position"),
    ],
)
def test_what_is_no_puzzle_is_recognised(fen: Any, moves: Any, reason: str) -> None:
    assert parse_puzzle("p", fen, moves) == reason


def test_an_alternative_is_legal_wrong_and_of_the_seed() -> None:
    found = puzzle(*OPENING)
    drawn = [alternative(found, seed=seed) for seed in range(20)]
    assert all(move in found.board.legal_moves for move in drawn)
    assert found.solution not in drawn
    assert len(set(drawn)) > 5
    assert drawn == [alternative(found, seed=seed) for seed in range(20)]


def test_an_alternative_never_mates_nor_promotes_otherwise() -> None:
    mating = puzzle(*TWO_MATES)
    others = {move for seed in range(300) if (move := alternative(mating, seed=seed))}
    assert chess.Move.from_uci("b2b8") not in others
    assert len(others) > 20
    promoting = puzzle(*PROMOTION)
    others = {move for seed in range(100) if (move := alternative(promoting, seed=seed))}
    assert not any(move.uci().startswith("b7a8") for move in others)
    assert any(move.uci().startswith("b7b8") for move in others)
    # The control: both left out are legal.
    assert chess.Move.from_uci("b2b8") in mating.board.legal_moves
    assert chess.Move.from_uci("b7a8r") in promoting.board.legal_moves


def test_a_forced_move_has_no_alternative() -> None:
    assert alternative(puzzle(*FORCED), seed=0) is None


def test_binary_rows_are_balanced_and_right_where_they_say_so(given: Any) -> None:
    rows = many_puzzles(300)
    given(rows)
    known = {row["PuzzleId"]: row for row in rows}
    for split in get_task("chess").splits:
        found = get_task("chess").rows(split)
        labels = found.columns["label"]
        assert 2 * sum(labels) == len(labels) > 10
        for name, text, label in zip(found.ids, found.contents(), labels, strict=True):
            _, puzzle_id, uci = name.split("-")
            solution = known[puzzle_id]["Moves"].split()[1]
            assert (uci == solution) == bool(label)
            board = puzzle(known[puzzle_id]["FEN"], known[puzzle_id]["Moves"]).board
            assert board.parse_san(str(text).rsplit(": ", 1)[1]).uci() == uci
            assert not str(text).endswith(("+", "#"))


def test_completions_are_the_solutions(given: Any) -> None:
    rows = many_puzzles(200)
    given(rows)
    known = {f"lichess-{row['PuzzleId']}": row for row in rows}
    for form, ending in (("chess-move", "\nBest move:"), ("chess-move-pgn", "")):
        found = get_task(form).rows("test")
        assert len(found) > 20
        for record in found.records():
            row = known[record["id"]]
            board = puzzle(row["FEN"], row["Moves"]).board
            assert board.parse_san(record["completion"]).uci() == row["Moves"].split()[1]
            assert record["text"].endswith(ending)
            assert "label" not in record


def test_splits_are_disjoint_whatever_the_seed(given: Any) -> None:
    given(many_puzzles(300))
    for name in NAMES:
        where: dict[str, str] = {}
        for seed in (0, 1):
            for split in get_task(name).splits:
                for row_id in get_task(name).rows(split, seed=seed).ids:
                    assert where.setdefault(row_id.split("-")[1], split) == split
        assert Counter(where.values())["weak"] > 50


def test_rows_are_of_the_seed_and_other_puzzles_hardly_matter(given: Any) -> None:
    rows = many_puzzles(300)
    given(rows)
    before = get_task("chess").rows("weak")
    assert before.contents() == get_task("chess").rows("weak").contents()
    assert before.contents() != get_task("chess").rows("weak", seed=1).contents()
    given(rows[:150] + rows[151:])
    after = get_task("chess").rows("weak")
    # One puzzle fewer takes at most itself and one of the other class.
    assert len(set(before.ids) ^ set(after.ids)) <= 2
    common = set(before.ids) & set(after.ids)
    assert [i for i in before.ids if i in common] == [i for i in after.ids if i in common]


def test_unusable_puzzles_are_left_out_and_counted(given: Any) -> None:
    good = many_puzzles(120)
    bad = [
        {"PuzzleId": f"bad{i}", "FEN": fen, "Moves": moves, "Rating": 1}
        for i in range(8)
        for fen, moves in [(OPENING[0], "e7e5 e1e8") if i % 2 else (OPENING[0], "e7e5")]
    ]
    forced = [
        {"PuzzleId": f"f{i}", "FEN": FORCED[0], "Moves": FORCED[1], "Rating": 1} for i in range(8)
    ]
    mates = [
        {"PuzzleId": f"t{i}", "FEN": TWO_MATES[0], "Moves": TWO_MATES[1], "Rating": 1}
        for i in range(8)
    ]
    given([*good, *bad, *forced, *mates, good[0]])  # the last stands twice
    for name, own in (("chess", "no other move"), ("chess-move", "several mates")):
        counted: Counter[str] = Counter()
        for split in get_task(name).splits:
            source = get_task(name).rows(split).source
            _, _, reasons = source.rstrip(")").partition(": ")
            for part in filter(None, reasons.split(", ")):
                count, _, reason = part.partition(" for ")
                counted[reason] += int(count)
        assert counted == {"an illegal move": 4, "fewer than two moves": 4, own: 8}


def test_a_file_with_the_position_after_the_move_is_refused(given: Any) -> None:
    rows = many_puzzles(60)
    for row in rows:
        row["FEN"] = puzzle(row["FEN"], row["Moves"]).board.fen()
    given(rows)
    with pytest.raises(DataError, match=r"FEN is the position before the first of Moves"):
        get_task("chess-move").rows("weak")


def test_a_missing_column_is_reported(given: Any) -> None:
    given([{"PuzzleId": "a", "fen": "x", "Moves": "e2e4"}])
    with pytest.raises(DataError, match=r"no column 'FEN'; it has PuzzleId, fen, Moves"):
        get_task("chess").rows("test")


def test_only_as_many_puzzles_are_parsed_as_are_needed(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(many_puzzles(300))
    assert len(get_task("chess-move").rows("weak")) > 50
    monkeypatch.setitem(puzzles.SPLITS, "weak", 10)
    looked: list[str] = []

    def counting(name: str, fen: Any, moves: Any) -> Puzzle | str:
        looked.append(name)
        return parse_puzzle(name, fen, moves)

    monkeypatch.setattr(puzzles, "parse_puzzle", counting)
    found = get_task("chess-move").rows("weak")
    assert len(found) == 10
    assert len(looked) == 11


def config(model: Any, **settings: Any) -> FinetuneConfig:
    chosen = {"batch_size": 8, "device": "cpu", "dtype": "float32", "save": "none", **settings}
    return FinetuneConfig(model=str(model), **chosen)


def train_both_forms(
    model: Any, folder: Path, *, count: int, epochs: float, lr: float
) -> dict[str, float]:
    """Share of the first puzzles per form that a model has by heart after training on them."""
    rows = get_task("chess").rows("student").select(range(count))
    truth = WeakLabels.from_columns({"id": rows.ids, "label": rows.columns["label"]})
    settings = config(model, epochs=epochs, lr=lr)
    classifier = finetune(
        settings, training_rows(rows, truth), folder / "binary", predict={"train": rows}
    )
    moves = get_task("chess-move").rows("student").select(range(count))
    writer = finetune_completion(
        settings, completion_rows(moves), folder / "moves", predict={"train": moves}
    )
    found = classifier.predictions["train"].align(rows.keys).labels
    return {
        "chess": float((found.hard == np.array(rows.columns["label"])).mean()),
        "chess-move": float(exact_match(writer.predictions["train"], moves).mean()),
    }


@pytest.mark.usefixtures("one_thread")
def test_both_forms_train_a_decoder(
    given: Any, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Chance is 50 % for the classes, and for 16 moves, most of them different, near 0."""
    given(many_puzzles(300))
    found = train_both_forms(tiny_model("llama"), tmp_path, count=16, epochs=20.0, lr=5e-3)
    assert found["chess"] >= 0.8
    assert found["chess-move"] >= 0.6


def test_puzzles_are_read_from_a_folder_laid_out_like_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = many_puzzles(120)
    folder = tmp_path / "Lichess" / "chess-puzzles"
    folder.mkdir(parents=True)
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.setenv("PROBEKIT_DATASETS", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = get_task("chess-move").rows("test")
    known = {f"lichess-{row['PuzzleId']}": row for row in rows}
    assert len(found) > 10
    assert set(found.ids) <= set(known)
    assert (tmp_path / "cache").is_dir()


@pytest.fixture
def real_puzzles(realdata: Any, given: Any) -> list[dict[str, Any]]:
    path = Path(realdata.data) / "lichess_puzzles" / "chessAlarm.puzzles.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    given(rows)
    return rows


@pytest.mark.realdata
def test_real_puzzles_are_nearly_all_usable(real_puzzles: list[dict[str, Any]]) -> None:
    usable = sum(
        isinstance(parse_puzzle(r["PuzzleId"], r["FEN"], r["Moves"]), Puzzle)
        for r in real_puzzles[:2000]
    )
    assert usable == 2000
    for name in NAMES:
        rows = get_task(name).rows("validation")
        assert len(rows) == puzzles.SPLITS["validation"]
        if "label" in rows.columns:
            assert 2 * sum(rows.columns["label"]) == len(rows)


@pytest.mark.realdata
def test_a_real_mate_in_one_has_no_second_mate_as_wrong_answer(
    real_puzzles: list[dict[str, Any]],
) -> None:
    """2 % of the mates in one have another mate; they are what the exclusion is for."""
    found = 0
    mates = [row for row in real_puzzles if "mateIn1" in row["Themes"].split()][:400]
    for row in mates:
        each = puzzle(row["FEN"], row["Moves"], row["PuzzleId"])
        found += puzzles._has_other_mate(each)
        move = alternative(each, seed=0)
        if move is not None:
            board = each.board
            board.push(move)
            assert not board.is_checkmate()
    assert found >= 1


@pytest.mark.realdata
@pytest.mark.usefixtures("one_thread", "real_puzzles")
@pytest.mark.slow
def test_both_forms_train_a_real_decoder_on_real_puzzles(realdata: Any, tmp_path: Path) -> None:
    found = train_both_forms(
        realdata.models / "stories260K", tmp_path, count=8, epochs=25.0, lr=5e-3
    )
    assert found["chess"] >= 0.8
    assert found["chess-move"] >= 0.8
