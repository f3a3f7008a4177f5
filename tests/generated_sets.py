"""Collections of generated token sets, written by the real writers; the tokens are the test's."""

from gap3d import schemas
from gap3d.features.tokens import TokenLayout, columns_of
from gap3d.fingerprints import digest_of
from gap3d.prompts import of_texts
from gap3d.records import Outcome, Status
from gap3d.settings import ComputeSettings, Limits, Settings
from pipelines import prompts

TRELLIS_LAYOUT = TokenLayout(registers=4, grid=(37, 37), width=1024)


def settings_at(root, **values):
    return Settings(store=root, compute=ComputeSettings(workers=0, encoder_threads=1, lease_wait_s=0), **values)


def collection(settings, name, texts, tokens=None, layout=TRELLIS_LAYOUT, images=()):
    """Prompts, and for those whose text is in ``tokens`` a generated set: (store, settings of the collection)."""
    found = of_texts(texts, images)
    store, own = prompts.collection_of(settings, name, len(found))
    prompts.run(own, store, found)
    if tokens is not None:
        write_sets(store, {each: tokens.get(each.text) for each in found}, layout)
    return store, own


def write_sets(store, sets, layout):
    """Commit token sets by prompt; one without tokens is a failed row."""
    schema = schemas.generated(layout.registers, layout.patches, layout.width)
    metadata = {"tokens": layout.describe("float16"), "label": "UNTRAINED random weights: numbers of a test"}
    (shard,) = store.shards
    compute = ComputeSettings(flush_rows=2, flush_s=1e6, lease_wait_s=0)
    with store.writer("generated", shard, schema, compute, Limits(), metadata) as writer:
        for prompt, tokens in sets.items():
            key, text, fault = prompt.key, prompt.text, prompt.fault
            if fault is not None:
                words = {"status": fault.status, "reason": fault.reason}
                outcome = Outcome(stage="generated", key=key, origin="prompts", **words)
            elif tokens is None:
                outcome = Outcome(stage="generated", key=key, status=Status.IMPORT_ERROR, reason="a damaged PNG")
            else:
                data = {"object_id": key, "view": 0, **columns_of(tokens, layout, "float16")}
                data |= {"prompt": text, "image_sha256": "", "seed": 0, "checkpoint": "c"}
                outcome = Outcome(stage="generated", key=key, data=data)
            digest = "" if tokens is None else str(float(tokens.sum()))
            writer.add(outcome, {"text": digest_of(text), "tokens": digest})
        return writer.finish({prompt.key for prompt in sets})
