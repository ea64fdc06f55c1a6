"""A plain Dagster job with as many assets as `customer_360`, which do nothing."""

from __future__ import annotations

import dagster as dg


@dg.asset
def customers() -> None:
    """Stand where the customers are read."""


@dg.asset
def orders() -> None:
    """Stand where the orders are read."""


@dg.asset(deps=[customers, orders])
def joined() -> None:
    """Stand where both are joined."""


defs = dg.Definitions(
    assets=[customers, orders, joined],
    jobs=[dg.define_asset_job("empty_assets")],
    executor=dg.in_process_executor,
)
