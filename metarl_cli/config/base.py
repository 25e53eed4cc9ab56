"""The base of every configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class StrictModel(BaseModel):
    """A frozen configuration: unknown keys, wrong types and missing values are errors; the values live in ``conf/``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
