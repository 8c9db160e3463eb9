"""`afmoe-mlx fuse`: adapters merged into the weights of a model, or of its original."""

from ..api import DEMO
from ..checkpoint.names import runs
from ..command_line.requests.conversion import FuseRequest
from ..conversion.recipes import recipe_of_model
from . import convert


def run(request: FuseRequest) -> None:
    """Convert what is merged into; an original as the model is quantized, unless a recipe is given."""
    recipe = None
    if request.original is not None and request.recipe is None:
        source = DEMO if request.model == "demo" else request.model
        recipe = recipe_of_model(source, revision=request.revision)
    convert.run(request.as_conversion(runs(request.model)), recipe)
