"""Where a stage runs: in the step's own process with its own Ray, or as a Ray job on a cluster."""

from collections.abc import Sequence
from importlib import import_module

import dagster as dg
from pydantic import Field

from assets_defs.partitions import SETTINGS
from gap3d.lease import LeaseHeld
from gap3d.records import SystemicFault
from gap3d.settings import Settings
from pipelines.job import NotReady
from pipelines.ray_job import JobFailed, submit
from pipelines.report import Report

FOR_A_PERSON = (NotReady, LeaseHeld, SystemicFault, JobFailed)
"""What these say is written for whoever started the run; where in the program it was noticed is not."""


class Compute(dg.ConfigurableResource):
    """One setting decides: inline on a laptop, job on a cluster. Both run the same program."""

    mode: str = Field(default=SETTINGS.compute.mode, description="inline or job")
    address: str = Field(
        default=SETTINGS.compute.address or "", description="job: the Ray dashboard, e.g. http://127.0.0.1:8265"
    )

    def settings(self) -> Settings:
        """The code location's settings with this resource's place of work."""
        compute = SETTINGS.compute.model_copy(update={"mode": self.mode, "address": self.address or None})
        return SETTINGS.model_copy(update={"compute": compute})

    def run(
        self, context: dg.AssetExecutionContext, module: str, shards: Sequence[str] = (), stages: Sequence[str] = ()
    ) -> Report:
        """Bring shards up to date.

        Args:
            context: of the step.
            module: the stage's module in ``pipelines``.
            shards: shard keys; none for a stage without shards.
            stages: of ``rendering``, the subset that was asked for.

        Raises:
            dg.Failure: the stage stopped, with its reason in a sentence.
        """
        settings = self.settings()
        try:
            if self.mode == "inline":
                run = import_module(f"pipelines.{module}").run
                return run(settings, shards, stages) if stages else run(settings, shards)
            if self.mode != "job" or not self.address:
                raise dg.Failure(
                    f"compute mode {self.mode!r}, address {self.address!r}: use inline, or job with an address"
                )
            program = stages[0] if len(stages) == 1 else module
            name = f"gap3d-{context.run_id[:8]}-{program}-{'-'.join(shards) or 'all'}-{context.retry_number}"
            return submit(program, settings, shards, name, context.log.info)
        except FOR_A_PERSON as error:
            raise dg.Failure(str(error)) from error
