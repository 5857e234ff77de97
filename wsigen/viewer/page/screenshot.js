// What is shown, as a PNG: slide, overlay, comparison, scale bar, and what it is.

import { element } from "./api.js";

export function screenshot(stage, measure, compare) {
  const root = element("stage"), ratio = devicePixelRatio || 1;
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(root.clientWidth * ratio);
  canvas.height = Math.round(root.clientHeight * ratio);
  const draw = canvas.getContext("2d");
  draw.scale(ratio, ratio);
  draw.fillStyle = "#0b0d12";
  draw.fillRect(0, 0, root.clientWidth, root.clientHeight);
  const add = (viewer, id, from) => {
    const left = element(id).offsetLeft, width = element(id).clientWidth, height = element(id).clientHeight;
    draw.save();
    draw.beginPath();
    draw.rect(from, 0, root.clientWidth - from, height);
    draw.clip();
    if (from) { draw.fillStyle = "#10131a"; draw.fillRect(from, 0, root.clientWidth - from, height); }
    draw.drawImage(viewer.drawer.canvas, left, 0, width, height);
    draw.restore();
  };
  add(stage.left, "left", 0);
  if (compare.mode !== "off") add(compare.right, "right", element("divider").offsetLeft + 1);
  const words = [stage.first.name, measure.now.textContent];
  for (const id of ["synthetic", "state"]) if (!element(id).hidden) words.push(element(id).textContent);
  label(draw, words.join("   ·   "), 16, 16);
  if (!element("scale").hidden) {
    const { um, width } = measure.bar(), bottom = root.clientHeight - 20;
    label(draw, um >= 1000 ? `${um / 1000} mm` : `${um} µm`, 16, bottom - 38, width + 20);
    draw.fillStyle = "#fff";
    draw.fillRect(26, bottom - 6, width, 4);
  }
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${stage.first.name.replace(/\.[^.]*$/, "")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

function label(draw, text, x, y, least = 0) {
  draw.font = "600 15px system-ui, sans-serif";
  draw.fillStyle = "rgba(20, 23, 31, 0.88)";
  draw.fillRect(x, y, Math.max(least, draw.measureText(text).width + 20), least ? 42 : 30);
  draw.fillStyle = "#f2f4f8";
  draw.fillText(text, x + 10, y + 20);
}
