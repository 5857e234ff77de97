// Inputs of a form. Each is { row, show(value) }: what stands in the panel, and how a value is shown in it.

import { choose } from "./api.js";

const title = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function made(tag, properties, ...content) {
  const one = Object.assign(document.createElement(tag), properties);
  one.append(...content);
  return one;
}

const labelled = (field, ...inputs) =>
  made("label", { className: "row" }, title(field.label), made("span", { className: "field" }, ...inputs));

// The input of a field; chosen(value) is called when a person has chosen one. "" stands for not told.
export function inputOf(id, field, chosen, ...beside) {
  if (field.colours) return swatches(id, field, chosen);
  const input = field.kind === "choice" ? list(field) : made("input", { type: field.kind, autocomplete: "off" });
  input.id = id;
  if (field.kind === "number") bound(input, field, "any");
  const value = () => (field.kind === "number" && input.value !== "" ? input.valueAsNumber : input.value);
  input.addEventListener("change", () => chosen(value()));
  return {
    row: labelled(field, input, ...beside),
    show(shown) { if (document.activeElement !== input) input.value = shown; },
  };
}

// A slider for a number; it reaches as far as what it shows, and 32 at least.
export function slider(id, field, chosen) {
  const input = made("input", { type: "range", id }), output = made("output", { id: `${id}-value` });
  bound(input, { ...field, most: 32 }, 1);
  const said = () => { output.textContent = input.value; };
  input.addEventListener("input", said);
  input.addEventListener("change", () => chosen(input.valueAsNumber));
  return {
    row: labelled(field, input, output),
    show(shown) {
      if (document.activeElement === input) return;
      input.max = Math.max(32, shown);
      input.value = shown;
      said();
    },
  };
}

function bound(input, field, step) {
  if (field.least !== null) input.min = field.least;
  if (field.most !== null) input.max = field.most;
  input.step = step;
}

function list(field) {
  const choices = field.choices.map((name) => made("option", { value: name }, name));
  if (!field.choices.includes(field.default)) choices.unshift(made("option", { value: "" }, "not told"));
  return made("select", {}, ...choices);
}

// Stains: a button each, with its colour.
function swatches(id, field, chosen) {
  const group = made("div", { id, className: "swatches", role: "group", ariaLabel: title(field.label) });
  for (const name of field.choices) {
    const tone = made("i", {}), button = made("button", { value: name }, tone, name);
    tone.style.background = field.colours[name];
    button.addEventListener("click", () => chosen(name));
    group.append(button);
  }
  return {
    row: made("div", { className: "row stacked" }, title(field.label), group),
    show(shown) { choose(group, [...group.children].find((one) => one.value === shown)); },
  };
}
