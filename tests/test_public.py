"""What ``import wsigen`` offers, and its keyword arguments."""

import dataclasses
import inspect
import re
import typing

import pytest

import wsigen
from wsigen.config import RenderKeywords


@pytest.mark.parametrize("name", wsigen.__all__)
def test_everything_public_can_be_imported(name):
    assert getattr(wsigen, name) is not None


def test_keywords_are_the_fields_of_the_settings():
    fields = {field.name: field.type for field in dataclasses.fields(wsigen.RenderSettings)}
    hints = {name: hint.__forward_arg__ for name, hint in RenderKeywords.__annotations__.items()}
    assert hints == fields


@pytest.mark.parametrize("call", [wsigen.render, wsigen.open_generated])
def test_a_misspelt_keyword_is_one_line_with_the_nearest_name(call, tmp_path):
    with pytest.raises(wsigen.WsigenError, match=r"^sede: no such setting of a render; did you mean seed\?$"):
        call(tmp_path / "mask.tif", sede=3)


def test_a_keyword_that_is_near_to_none_lists_them(tmp_path):
    with pytest.raises(wsigen.WsigenError, match=r"^zzz: .*choose from model, style, seed"):
        wsigen.render(tmp_path / "mask.tif", zzz=3)


def test_the_settings_of_a_call_are_typed():
    hints = typing.get_type_hints(wsigen.render, include_extras=True, localns={"RenderKeywords": RenderKeywords})
    assert "RenderKeywords" in str(hints["settings"])


@pytest.mark.parametrize("name", [name for name in wsigen.__all__ if inspect.isfunction(getattr(wsigen, name))])
def test_a_function_of_many_parameters_lists_them(name):
    function = getattr(wsigen, name)
    parameters = [str(parameter).partition(":")[0] for parameter in inspect.signature(function).parameters.values()]
    listed = re.findall(r"^ {4}(\*{0,2}\w+): ", inspect.getdoc(function), re.MULTILINE)
    assert len(parameters) < 5 or [entry for entry in listed if entry in parameters] == parameters


@pytest.mark.parametrize("name", [name for name in wsigen.__all__ if dataclasses.is_dataclass(getattr(wsigen, name))])
def test_settings_and_results_list_their_fields(name):
    public = getattr(wsigen, name)
    listed = []
    for part in reversed(public.__mro__[:-1]):
        attributes = (inspect.cleandoc(part.__doc__ or "")).partition("Attributes:")[2].partition("Raises:")[0]
        listed += re.findall(r"^ {4}(\w+): ", attributes, re.MULTILINE)
    assert listed == [field.name for field in dataclasses.fields(public)]
