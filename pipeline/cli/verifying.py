"""`ryzanstein verify`: checks output files by their receipts, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.connecting import DATA_DIR, JSON
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.billing.verifying import Fault, Proofs


def register(app: typer.Typer) -> None:
    app.command()(verify)


def register_key(keys: typer.Typer) -> None:
    """Adds to `ryzanstein keys`."""
    keys.command("signing")(show_signing_key)


def verify(
    output: list[Path] = typer.Argument(help="Output files of batches with receipts."),
    key: Path = typer.Option(..., "--key", help="Public key: a file in PEM, or what GET /v1/receipts/key answers."),
    model_folder: Path | None = typer.Option(
        None, "--model-folder", help="Folder of the model: texts are compared with their tokens."
    ),
    input_file: list[Path] = typer.Option(
        [], "--input", help="Input files of the batches: their prompts are tokenised again. Needs --model-folder."
    ),
    invoice: Path | None = typer.Option(
        None, "--invoice", help="An invoice in JSON: its Merkle root is compared with that of the receipts."
    ),
    as_json: bool = JSON,
) -> None:
    """Check what output files were billed by their signed receipts. Exit code 3 if anything is wrong."""
    from pipeline.billing.currencies import exact_text
    from pipeline.billing.verifying import Verification, verify_lines, verify_root

    if input_file and model_folder is None:
        raise typer.BadParameter("Prompts can't be tokenised without --model-folder.", param_hint="--input")
    proofs = _proofs(key, model_folder, input_file)
    found = Verification()
    faults: list[tuple[str, Fault]] = []
    for path in output:
        num_before = len(found.faults)
        with _opened(path) as file:
            verify_lines(file, proofs, found)
        faults += [(str(path), fault) for fault in found.faults[num_before:]]
    if invoice is not None:
        faults += [(str(invoice), fault) for fault in verify_root(found, *_receipts_of(invoice))]
    amounts = {currency: exact_text(amount, currency) for currency, amount in sorted(found.amounts.items())}
    if as_json:
        record = {
            "lines": found.num_lines,
            "proved": found.num_proved,
            "amounts": amounts,
            "faults": [
                {"file": name, "line": fault.line, "code": fault.code, "message": fault.message}
                for name, fault in faults
            ],
        }
        typer.echo(json.dumps(record, indent=2))
    else:
        for name, fault in faults:
            where = f"{name}:{fault.line}" if fault.line else name
            typer.echo(f"{where}: {fault.code}: {fault.message}")
        total = ", ".join(f"{amount} {currency}" for currency, amount in amounts.items()) or "nothing"
        typer.echo(f"{found.num_proved} of {found.num_lines} lines are proved; they cost {total}.")
    if faults or found.num_lines == 0:
        raise typer.Exit(3)


def show_signing_key(data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """Print the public key that checks this installation's receipts; the private one is made if there is none."""
    from pipeline.cli.connecting import use_stack
    from pipeline.signing import signing_key

    if data_dir is not None:
        use_stack(data_dir)
    found = signing_key()
    if as_json:
        typer.echo(json.dumps({"key_id": found.key_id, "public_key": found.public_key_text}))
    else:
        typer.echo(found.public_key_text, nl=False)


def _proofs(key: Path, model_folder: Path | None, input_files: list[Path]) -> Proofs:
    from pipeline.billing.revisions import revisions_of
    from pipeline.billing.verifying import Proofs
    from pipeline.jobs.recounting import prompts_of
    from pipeline.settings import get_settings
    from pipeline.tokenization import Tokenizer

    public_key = _public_key(key)
    if model_folder is None:
        return Proofs(public_key=public_key)
    tokenizer = Tokenizer.load(model_folder)
    prompts: dict[str, bytes] | None = None
    for path in input_files:
        with _opened(path) as stream:
            prompts = (prompts or {}) | prompts_of(stream, tokenizer, get_settings())
    return Proofs(
        public_key=public_key,
        tokenizer=tokenizer,
        tokenizer_revision=revisions_of(model_folder).tokenizer,
        prompts=prompts,
    )


def _public_key(path: Path) -> str:
    with _opened(path) as file:
        text: str = file.read().decode(errors="replace")
    if text.lstrip().startswith("{"):
        text = str(_json(path).get("public_key"))
    return text


def _receipts_of(invoice: Path) -> tuple[int, str | None]:
    """How many receipts an invoice names, and its root over them."""
    receipts = _json(invoice).get("receipts") or {"count": 0}
    if not isinstance(receipts, dict) or not isinstance(receipts.get("count"), int):
        raise UserError(f"{invoice} is no invoice: give what `ryzanstein bill report --format json` wrote.")
    return receipts["count"], receipts.get("merkle_root")


def _json(path: Path) -> dict[str, Any]:
    with _opened(path) as file:
        try:
            content = json.load(file)
        except (ValueError, RecursionError):
            raise UserError(f"{path} is no JSON.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object.")
    return content


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from None
