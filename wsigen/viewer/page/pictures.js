// Tile sources, and how tiles that have changed are fetched again without a flicker.
//
// Level k of the server has one pixel for 2^k x 2^k of level 0; OpenSeadragon counts levels from the coarse end.

const TILE = 256;
let sources = 0;

// levels: [[width, height], ...] from the finest on. url(level, column, row) is asked at each fetch, so that it may
// follow switches of the page.
export function pictureSource({ levels, url, transparent = false }) {
  const finest = levels.length - 1;
  const number = sources++;
  const source = new OpenSeadragon.TileSource({
    width: levels[0][0], height: levels[0][1], tileSize: TILE, tileOverlap: 0, minLevel: 0, maxLevel: finest,
  });
  const size = (level) => levels[finest - level];
  source.getNumTiles = (level) => {
    const [width, height] = size(level);
    return new OpenSeadragon.Point(Math.ceil(width / TILE), Math.ceil(height / TILE));
  };
  // Sizes are rounded down, so that a pixel of a level covers exactly its pixels of level 0.
  source.getTileBounds = (level, x, y, isSource) => {
    const [width, height] = size(level);
    const w = Math.min(TILE, width - x * TILE), h = Math.min(TILE, height - y * TILE);
    if (isSource) return new OpenSeadragon.Rect(0, 0, w, h);
    const scale = 2 ** (finest - level) / levels[0][0];
    return new OpenSeadragon.Rect(x * TILE * scale, y * TILE * scale, w * scale, h * scale);
  };
  // Tiles that do not overlap are stretched by a pixel against seams, which blurs them. Where pixels of the slide and of
  // the screen coincide there are no seams.
  source.item = null;
  Object.defineProperty(source, "tileOverlap", { get: () => (source.item && isSharp(source.item) ? 1 : 0) });
  source.getTileUrl = (level, x, y) => url(finest - level, x, y);
  source.getTileHashKey = (level, x, y) => `${number}/${level}/${x}_${y}`;
  source.hasTransparency = () => transparent;
  source.changed = [];  // [time, part] of late, for tiles that were on their way meanwhile
  source.fetchTile = async (tile, signal) => {
    for (let tries = 0; ; tries++) {
      const started = performance.now();
      const response = await fetch(url(finest - tile.level, tile.x, tile.y), { signal });
      if (!response.ok) throw new Error(`tile: ${response.status}`);
      const blob = await response.blob();
      const outdated = source.changed.some(([when, part]) => when >= started && touches(source, tile, part));
      if (!outdated || tries === 2) return blob;
    }
  };
  source.downloadTileStart = (job) => {
    const control = new AbortController();
    job.userData.control = control;
    source.fetchTile(job.tile, control.signal).then(
      (blob) => job.finish(blob, null, "rasterBlob"),
      (error) => job.fail(String(error), null),
    );
  };
  source.downloadTileAbort = (job) => job.userData.control?.abort();
  source.partOf = (tile) => {
    const scale = 2 ** (finest - tile.level) * TILE;
    return [tile.x * scale, tile.y * scale, scale, scale];
  };
  return source;
}

function touches(source, tile, part) {
  if (!part) return true;
  const [x, y, width, height] = source.partOf(tile);
  return x < part[0] + part[2] && part[0] < x + width && y < part[1] + part[3] && part[1] < y + height;
}

// A viewer whose tiles can be refreshed.
export function makeViewer(element, options) {
  const viewer = OpenSeadragon({
    element,
    drawer: "canvas",
    showNavigationControl: false,
    keyboardNavEnabled: false,
    imageLoaderLimit: 8,
    maxTilesPerFrame: 8,
    maxImageCacheCount: 800,
    maxZoomPixelRatio: 16,
    minZoomImageRatio: 0.1,
    visibilityRatio: 0.15,
    animationTime: 0.5,
    blendTime: 0,
    zoomPerScroll: 1.35,
    timeout: 120000,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
    ...options,
  });
  viewer.world.addHandler("add-item", ({ item }) => { item.source.item = item; });
  viewer.addHandler("animation-finish", () => settle(viewer));
  viewer.addHandler("tile-invalidated", async (event) => {
    if (!event.tile.stale) return;
    event.tile.stale = false;
    try {
      const blob = await event.tiledImage.source.fetchTile(event.tile);
      if (!event.outdated()) await event.setData(blob, "rasterBlob");
    } catch {
      event.tile.stale = true;  // the server is gone, or busy: the next change tries again
    }
  });
  return viewer;
}

// Whether a pixel of the screen is 2^k pixels of a picture.
function isSharp(item) {
  const power = Math.log2(item.viewportToImageZoom(item.viewer.viewport.getZoom(true)));
  return power < 0.5 && Math.abs(power - Math.round(power)) < 1e-6;
}

// At rest, move the view to whole pixels where that makes it sharp.
function settle(viewer) {
  const item = viewer.world.getItemAt(0);
  if (!item || !isSharp(item)) return;
  const corner = viewer.viewport.pixelFromPoint(item.getBounds(true).getTopLeft(), true);
  const off = new OpenSeadragon.Point(corner.x - Math.round(corner.x), corner.y - Math.round(corner.y));
  if (Math.abs(off.x) + Math.abs(off.y) > 1e-6) {
    viewer.viewport.panBy(viewer.viewport.deltaPointsFromPixels(off, true), true);
  }
}

// Fetch what shows one of the parts again ([x, y, width, height] at level 0; none: everything). Tiles on the screen are
// replaced when the new ones are there, others are forgotten.
export function refresh(viewer, source, parts) {
  const now = performance.now();
  const wanted = parts ?? [null];
  source.changed = source.changed.filter(([when]) => now - when < 20000).slice(-400);
  source.changed.push(...wanted.map((part) => [now, part]));
  for (const place of [viewer, viewer.navigator]) {
    if (!place?.world) continue;
    for (let index = 0; index < place.world.getItemCount(); index++) {
      const item = place.world.getItemAt(index);
      if (item.source !== source) continue;
      const loaded = place.tileCache.getLoadedTilesFor(item);
      const touched = loaded.filter((tile) => wanted.some((part) => touches(source, tile, part)));
      const shown = touched.filter((tile) => tile.beingDrawn);
      for (const tile of touched) if (!tile.beingDrawn) tile.unload(true);
      for (const tile of shown) tile.stale = true;
      if (shown.length) place.world.requestTileInvalidateEvent(shown, OpenSeadragon.now(), false);
      item._needsDraw = true;
      place.forceRedraw();
    }
  }
}
