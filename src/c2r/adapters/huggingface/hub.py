"""What is shared on the hub: a constrained model, or a plan alone, of a few kilobytes."""

from pathlib import Path

from huggingface_hub import HfApi

from c2r.adapters.huggingface.card import CARD_FILE, model_card
from c2r.adapters.huggingface.sources import find_source, is_hub_name, is_shared
from c2r.artifacts import atomic_folder, write_text
from c2r.errors import InputError, one_line
from c2r.plans import Plan
from c2r.plans.model_folder import BaseModel, read_base, read_plan, save_plan
from c2r.results import Measurement


def save_plan_only(
    plan: Plan,
    folder: str | Path,
    base_model: str,
    revision: str | None = None,
    measurement: Measurement | None = None,
) -> None:
    """Writes a plan and the name of its model to a new folder, of a few kilobytes.

    `c2r.from_pretrained` loads the model by that name and constrains it; the weights must be those
    that were profiled. The folder holds a model card with the plan's figures.

    Args:
        plan: made for the model.
        folder: must not exist, or be empty.
        base_model: a name on the hub, or a model folder.
        revision: branch, tag or commit of it on the hub.
        measurement: of the plan, for the card.

    Raises:
        InputError: there is no such model, or the folder is not empty or cannot be written.
        PlanMismatchError: the measurement is of another plan.
    """
    if is_hub_name(base_model):
        find_source(base_model, revision=revision)
    elif base_model != "tiny":
        if not (Path(base_model) / "config.json").is_file():
            raise InputError(f"{base_model} is no model folder (no config.json); check the path")
        base_model = str(Path(base_model).resolve())
    card = model_card(plan, base_model, measurement)
    with atomic_folder(Path(folder)) as temporary:
        save_plan(plan, temporary, BaseModel(name=base_model, revision=revision))
        write_text(temporary / CARD_FILE, card)


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload a plan by c2r",
) -> str:
    """Uploads a folder that holds a plan, with or without its model; makes the repository.

    A folder without a README.md is given a model card first.

    Args:
        folder: what `save_pretrained`, `finetune`, `c2r apply` or a Trainer wrote.
        repo_id: owner/name on the hub.
        private: of a new repository; None for what is usual there.
        revision: branch to commit to.
        token: of the hub; None for the one that `hf auth login` keeps.
        commit_message: of the commit.

    Returns:
        the address of the commit.

    Raises:
        InputError: the folder holds no plan, or one for a folder of this machine, or the hub does
            not take it.
        ArtifactError, PlanMismatchError: the plan cannot be read, or is not the one that is named.
    """
    folder = Path(folder)
    plan, base = read_plan(folder), read_base(folder)
    if plan is None:
        raise InputError(f"{folder} holds no plan to push; write one there with `c2r apply`")
    if base is not None and not is_shared(base.name):
        raise InputError(
            f"{folder} is a plan for the folder {base.name}, which others do not have; write it "
            "with the model's hub name, as in `c2r apply owner/model --plan-only`"
        )
    if not (folder / CARD_FILE).exists():
        write_text(folder / CARD_FILE, model_card(plan, None if base is None else base.name))
    api = HfApi(token=token, library_name="c2r")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the hub did not take {folder} as {repo_id}: {one_line(error).rstrip('.')}; check "
            "the name, and log in with `hf auth login`"
        ) from error
    return str(commit.commit_url)
