"""Run at the start of a kernel, as Colab does: put google.colab there, as far as the kit and its widgets look at it."""

import sys


def google_colab():
    """Return Colab's modules, in a function since the names of this file become the learner's."""
    from types import ModuleType, SimpleNamespace

    from IPython import get_ipython

    view = "application/vnd.jupyter.widget-view+json"
    output = ModuleType("google.colab.output")
    output._widgets = SimpleNamespace(_installed_url=None)

    def enable_custom_widget_manager():
        """Name the manager to the front end wherever display() shows a widget, but not where one ends a cell."""
        if output._widgets._installed_url is None:
            output._widgets._installed_url = "manager.js"
            get_ipython().display_pub.register_hook(name_manager)

    def name_manager(message):
        content = message["content"]
        if view in content.get("data", {}):
            content["metadata"][view] = {"colab": {"custom_widget_manager": {"url": "manager.js"}}}
        return message

    output.enable_custom_widget_manager = enable_custom_widget_manager
    return {"google.colab": ModuleType("google.colab"), "google.colab.output": output}


sys.modules |= google_colab()
del google_colab, sys
