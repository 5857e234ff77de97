// A click on a nucleus: what it is, and its outline.

import { count, element, get, table } from "./api.js";

const SVG = "http://www.w3.org/2000/svg";

export class Inspect {
  constructor(stage, measure, overlays) {
    this.stage = stage;
    this.measure = measure;
    this.overlays = overlays;
    this.asked = 0;
    stage.onView((viewer) => {
      viewer.addHandler("canvas-click", (event) => { if (event.quick) this.ask(event.originalEvent); });
      viewer.addHandler("canvas-drag", () => this.close());
      viewer.addHandler("zoom", () => { element("nucleus").hidden = true; });
    });
  }

  close() {
    element("nucleus").hidden = true;
    if (this.shape) this.stage.left.removeOverlay(this.shape);
    this.shape = null;
  }

  async ask(event) {
    const overlay = this.overlays.current, number = ++this.asked;
    const [px, py] = this.measure.pixelAt(event);
    const { x, y, scale } = overlay.place;
    const at = [px + 0.5 - x, py + 0.5 - y].map((one) => Math.floor(one / scale));
    this.close();
    if (at.some((one, axis) => one < 0 || one >= overlay.levels[0][axis])) return;
    const { found } = await get(`api/nucleus/${overlay.id}?x=${at[0]}&y=${at[1]}`);
    if (!found || number !== this.asked) return;
    this.show(found, event);
    this.outline(found, overlay);
  }

  show(found, event) {
    const box = element("nucleus");
    const title = document.createElement("h3"), dot = document.createElement("i");
    dot.style.background = found.colour;
    title.append(dot, found.class);
    const most = found.whole ? "" : "at least ";
    const rows = [
      ["id", found.id === null ? "none" : String(found.id)],
      ["area", found.area_um2 === null ? "no scale" : `${most}${found.area_um2.toFixed(1)} µm²`],
      ["", `${most}${count(Math.round(found.area_px))} px`],
    ];
    box.replaceChildren(title, table(rows));
    box.hidden = false;
    const left = Math.min(event.clientX + 18, innerWidth - box.offsetWidth - 12);
    const top = Math.min(event.clientY + 18, innerHeight - box.offsetHeight - 12);
    box.style.left = `${left}px`;
    box.style.top = `${top}px`;
  }

  outline(found, overlay) {
    const points = found.rings.flat();
    if (!points.length) return;
    const xs = points.map((one) => one[0]), ys = points.map((one) => one[1]);
    const left = Math.min(...xs), top = Math.min(...ys);
    const width = Math.max(...xs) - left, height = Math.max(...ys) - top;
    const shape = document.createElementNS(SVG, "svg"), path = document.createElementNS(SVG, "path");
    shape.setAttribute("viewBox", `${left} ${top} ${width} ${height}`);
    shape.setAttribute("preserveAspectRatio", "none");
    shape.setAttribute("class", "outlined");
    path.setAttribute("d", found.rings.map((ring) => `M${ring.map((one) => one.join(" ")).join("L")}Z`).join(""));
    path.setAttribute("fill-rule", "evenodd");
    shape.append(path);
    const { x, y, scale } = overlay.place, world = this.stage.first.levels[0][0];
    const location = new OpenSeadragon.Rect(
      (x + left * scale) / world, (y + top * scale) / world, (width * scale) / world, (height * scale) / world);
    this.stage.left.addOverlay({ element: shape, location });
    this.shape = shape;
  }
}
