// Requests to the server, and words for people.

export async function get(path) {
  return answer(await fetch(path));
}

export async function post(path, body) {
  return answer(await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  }));
}

async function answer(response) {
  const content = await response.json();
  if (!response.ok) throw new Error(content.error ?? response.statusText);
  return content;
}

export const element = (id) => document.getElementById(id);

let hiding;
export function notice(text, good = false) {
  const box = element("notice");
  box.textContent = text;
  box.classList.toggle("good", good);
  box.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => { box.hidden = true; }, 8000);
}

export const count = (number) => number.toLocaleString("en");

export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

export function button(text, act, title = "") {
  const made = document.createElement("button");
  made.textContent = text;
  made.title = title;
  made.addEventListener("click", act);
  return made;
}

// Choose one of the buttons of a group.
export function choose(group, chosen) {
  for (const one of group.querySelectorAll("button")) {
    one.classList.toggle("on", one === chosen);
    one.setAttribute("aria-pressed", String(one === chosen));
  }
}

// Rows of name and value.
export function table(rows) {
  const list = document.createElement("dl");
  for (const [name, value] of rows) {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    list.append(term, text);
  }
  return list;
}
