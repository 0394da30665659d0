"""Serving and training engines: plans in the formats that they load, traces that they write."""

from c2r.adapters.engines.engine import FIRST_NODE, Command
from c2r.adapters.engines.exports import (
    Export,
    check_any_export,
    check_export,
    commands_in_order,
    export_plan,
    loads_placement,
)
from c2r.adapters.engines.imports import Import, import_traces, trace_files
from c2r.adapters.engines.slots import SlotMap, layer_placement, plan_slots
from c2r.adapters.formats import ExportFormat, ImportFormat
from c2r.adapters.layers import ModelLayers

__all__ = [
    "FIRST_NODE",
    "Command",
    "Export",
    "ExportFormat",
    "Import",
    "ImportFormat",
    "ModelLayers",
    "SlotMap",
    "check_any_export",
    "check_export",
    "commands_in_order",
    "export_plan",
    "import_traces",
    "layer_placement",
    "loads_placement",
    "plan_slots",
    "trace_files",
]
