"""The step method of the second claim, brought as other packages bring theirs: by an entry point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pipeline_assets.steps.base import SingleInputTransform, StepContext

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_ITERATIONS = 20
# Behind this it shows in how many parts Spark has the rows: the curve is made of samples of each.
_DIGITS = 2


class TrainClassifiers(SingleInputTransform):
    """Trains a logistic regression for each strength of regularization, and tells how well each model separates.

    Spark ML itself keeps what it iterates over, as blocks of rows, for as long as one training takes, whether its input
    is cached or not. So an input that is not cached is computed not in each iteration, but three times for each model:
    for the means and variances, for the blocks, and for the curve by which the model is judged.
    """

    method = "trainClassifiers"
    passes: ClassVar[int] = 10

    label: str
    """Column with 0 and 1, as DOUBLE."""
    features: tuple[str, ...] = Field(min_length=1)
    """Columns of numbers."""
    regularizations: tuple[float, ...] = Field(min_length=1)
    """A model is trained for each."""

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        from pyspark.ml.classification import LogisticRegression
        from pyspark.ml.feature import VectorAssembler

        (frame,) = inputs.values()
        found = []
        # Nothing can be learned of one label, or of none: those are the frames that a run looks for lineage with.
        if frame.select(self.label).distinct().count() == 2:
            rows = VectorAssembler(inputCols=list(self.features), outputCol="features").transform(frame)
            for strength in self.regularizations:
                training = LogisticRegression(labelCol=self.label, regParam=strength, maxIter=_ITERATIONS)
                found.append((strength, round(training.fit(rows).summary.areaUnderROC, _DIGITS)))
        return context.spark.createDataFrame(found, "regularization DOUBLE, area_under_roc DOUBLE")
