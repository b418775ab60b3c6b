"""`pixelese tokenizer import-lavit`: the published LaVIT weights as an artifact."""

from pathlib import Path

import typer


def import_lavit(
    folder: Path = typer.Argument(
        help="The official download, or its visual_tokenizer folder: tokenizer_encoder.bin and "
        "eva_vitg_psz14.bin, or both as .safetensors. A .bin is a pickle: it is read for plain "
        "tensors only, and refused where it holds more."
    ),
    output: str = typer.Option(help="Folder of the new artifact; must not exist yet."),
    encoder: str | None = typer.Option(
        None,
        help="The vision tower, where the folder has none: EVA01-g-14 (with --pretrained), or "
        "local-dir:FOLDER.",
    ),
    pretrained: str | None = typer.Option(None, help="open_clip's weight tag for the encoder."),
    rule: str = typer.Option(
        "budget",
        help="What takes the place of the official sampling, which gives other codes at every run: "
        "budget (the top round(sum p) patches: the mean length of the sampling), threshold "
        "(p over --tau: a length of its own, as sampling also keeps some of many unlikely ones), "
        "or fixed (--num-kept).",
    ),
    tau: float = typer.Option(0.5, help="Keep probability above which `threshold` keeps."),
    num_kept: int = typer.Option(0, min=0, help="Patches that `fixed` keeps."),
    leave_out: list[str] = typer.Option(
        [],
        help="Beginning of the names of tensors in tokenizer_encoder that decide no codes; may be "
        "given several times. Every other unknown tensor is refused.",
    ),
) -> None:
    """Turn the published LaVIT weights into an artifact, to check against their codes."""
    from schemas.errors import DeclarationError
    from tokenizer.config import DecisionConfig, EncoderConfig
    from tokenizer.lavit_import import LICENCE
    from tokenizer.lavit_import import import_lavit as import_weights

    try:
        decision = DecisionConfig(rule=rule, tau=tau, num_kept=num_kept)
        tower = EncoderConfig(model=encoder, pretrained=pretrained) if encoder else None
    except ValueError as error:
        raise DeclarationError(f"{error}") from error
    found = import_weights(folder, output, decision=decision, encoder=tower, leave_out=leave_out)
    head = found.head
    shortest, longest = found.codebook_norms
    print(f"wrote {output}: fingerprint {found.fingerprint[:16]}, rule {rule}")
    print(
        f"{head.merger_blocks} merger blocks, {head.codebook_size:,} codes of {head.code_dim} with "
        f"norms of {shortest:.6f} to {longest:.6f}, taken as they are"
    )
    if found.left_out:
        print(f"left out, as they decide no codes: {', '.join(found.left_out)}")
    print(LICENCE)
