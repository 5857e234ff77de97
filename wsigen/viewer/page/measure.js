// Scale bar, magnification, and the position of the pointer.

import { button, count, element } from "./api.js";

const MAGNIFICATIONS = [5, 10, 20, 40];
const UM_AT_1X = 10;  // micrometres to a pixel at 1x, by which 20x means 0.5
const LONGEST_BAR = 180;  // CSS pixels

export class Measure {
  constructor(viewer, picture) {
    this.viewer = viewer;
    this.picture = picture;
    this.mpp = picture.mpp ?? (picture.objective ? UM_AT_1X / picture.objective : null);
    const group = element("magnifications");
    this.now = document.createElement("span");
    this.now.id = "magnification-now";
    this.now.title = "Magnification now";
    if (this.mpp) {
      const most = Math.max(20, picture.objective ?? 20);
      const buttons = MAGNIFICATIONS.filter((one) => one <= most);
      group.append(this.now, ...buttons.map((one) => button(`${one}×`, () => this.show(one), `${one}×`)));
    } else {
      group.append(this.now, button("1:1", () => this.zoomToPixels(1), "A pixel of the slide is one of the screen"));
    }
    viewer.addHandler("update-viewport", () => this.update());
    viewer.addHandler("resize", () => this.update());
    new OpenSeadragon.MouseTracker({
      element: element("stage"),
      moveHandler: (event) => this.point(event.originalEvent),
      leaveHandler: () => { element("position").textContent = ""; },
    });
  }

  // Pixels of level 0 to a CSS pixel.
  pixels() {
    const viewport = this.viewer.viewport;
    return this.picture.levels[0][0] / (viewport.getContainerSize().x * viewport.getZoom(true));
  }

  zoomToPixels(pixels) {
    const viewport = this.viewer.viewport;
    viewport.zoomTo(this.picture.levels[0][0] / (viewport.getContainerSize().x * pixels));
  }

  show(magnification) {
    if (this.mpp) this.zoomToPixels(UM_AT_1X / magnification / this.mpp);
  }

  // The bar: a round length up to LONGEST_BAR on the screen. {um, width in CSS pixels}
  bar() {
    const um = this.pixels() * this.picture.mpp;
    const most = LONGEST_BAR * um;
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].find((one) => one * power <= most) * power;
    return { um: length, width: length / um };
  }

  update() {
    if (!this.viewer.world.getItemCount()) return;
    if (this.mpp) {
      const now = UM_AT_1X / (this.pixels() * this.mpp);
      this.now.textContent = `${now >= 9.95 ? Math.round(now) : Number(now.toPrecision(2))}×`;
    } else {
      this.now.textContent = `1:${this.pixels().toPrecision(2)}`;
    }
    const box = element("scale");
    box.hidden = !this.picture.mpp;
    if (box.hidden) return;
    const { um, width } = this.bar();
    const text = um >= 1000 ? `${um / 1000} mm` : `${um} µm`;
    if (element("scale-text").textContent !== text) element("scale-text").textContent = text;
    element("scale-bar").style.width = `${width}px`;
    element("scale-bar").dataset.um = um;
  }

  // Pixel of level 0 under a pointer event.
  pixelAt(event) {
    for (const view of ["right", "left"]) {
      const box = element(view).getBoundingClientRect();
      if (element(view).hidden || event.clientX < box.left || event.clientX >= box.right) continue;
      const at = this.viewer.viewport.pointFromPixel(
        new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top), true);
      const scale = this.picture.levels[0][0];
      return [Math.floor(at.x * scale), Math.floor(at.y * scale)];
    }
    return null;
  }

  point(event) {
    const at = this.pixelAt(event);
    const [width, height] = this.picture.levels[0];
    const inside = at && at[0] >= 0 && at[1] >= 0 && at[0] < width && at[1] < height;
    let text = "";
    if (inside) {
      text = `x ${count(at[0])}  y ${count(at[1])} px`;
      if (this.picture.mpp) {
        const [x, y] = at.map((one) => count(Math.round(one * this.picture.mpp * 10) / 10));
        text += `   ·   ${x}, ${y} µm`;
      }
    }
    element("position").textContent = text;
  }
}
