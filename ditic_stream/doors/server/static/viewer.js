// The page of one archive: pan and zoom, the original beside what was decoded, the archive's tiles drawn over it.
// Everything comes from the server that sent this file: info, rates, and tiles of Deep Zoom.
"use strict";

(async () => {
  const at = (id) => document.getElementById(id);
  const RAMP = [[24, 32, 120], [0, 126, 143], [120, 190, 90], [255, 214, 74]];  // low to high rate

  const fail = (words) => {
    at("problem").textContent = words;
    at("problem").hidden = false;
  };
  const fetchJson = async (path) => {
    const answer = await fetch(path);
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.message || answer.statusText);
    return body;
  };

  let info;
  try {
    info = await fetchJson("info");
  } catch (error) {
    fail(error.message);
    return;
  }

  // --- the pictures

  const TILE = 512, OVERLAP = 1;
  const top = Math.ceil(Math.log2(Math.max(info.width, info.height, 1)));
  const pyramid = (folder, version) => ({
    width: info.width, height: info.height, tileSize: TILE, tileOverlap: OVERLAP,
    minLevel: Math.min(top, 8), maxLevel: top,
    getTileUrl: (level, x, y) => `${folder}/${level}/${x}_${y}.${info.page_format}?v=${version}`,
  });
  const viewer = OpenSeadragon({
    element: at("scene"), drawer: "canvas", showNavigationControl: false, showNavigator: false,
    tileSources: [], maxZoomPixelRatio: 16, visibilityRatio: 0.3, animationTime: 0.4, springStiffness: 10,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    timeout: 120000, tileRetryMax: 3, tileRetryDelay: 2000,
  });
  const items = {};
  const add = (name, folder, version, opacity) => new Promise((resolve, reject) => viewer.addTiledImage({
    tileSource: pyramid(folder, version), opacity,
    success: (event) => { items[name] = event.item; resolve(); },
    error: (event) => reject(new Error(event.message)),
  }));

  // --- swipe

  let mode = "decoded", share = 0.5;
  const clip = (item, left, right) => {
    const wanted = `${left},${right}`;
    if (item.ditic === wanted) return;
    item.ditic = wanted;
    item.setClip(left === null ? null : new OpenSeadragon.Rect(left, 0, Math.max(right - left, 0), info.height));
  };
  const place = () => {
    if (!items.decoded || !items.original) return;
    if (mode !== "swipe") {
      clip(items.decoded, null, null);
      clip(items.original, null, null);
      return;
    }
    const point = viewer.viewport.pointFromPixel(new OpenSeadragon.Point(share * viewer.container.clientWidth, 0), true);
    const x = Math.min(Math.max(items.decoded.viewportToImageCoordinates(point, true).x, 0), info.width);
    clip(items.original, 0, x);
    clip(items.decoded, x, info.width);
    at("swipe").style.left = `${100 * share}%`;
    at("swipe").setAttribute("aria-valuenow", String(Math.round(100 * share)));
  };
  const choose = (wanted) => {
    mode = wanted;
    items.decoded.setOpacity(mode === "original" ? 0 : 1);
    items.original.setOpacity(mode === "decoded" ? 0 : 1);
    at("swipe").hidden = mode !== "swipe";
    for (const button of document.querySelectorAll("[data-mode]")) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    }
    place();
    viewer.forceRedraw();
  };
  const slide = (value) => {
    share = Math.min(Math.max(value, 0), 1);
    place();
  };
  at("swipe").addEventListener("pointerdown", (event) => {
    at("swipe").setPointerCapture(event.pointerId);
    event.preventDefault();
    at("swipe").focus();
  });
  at("swipe").addEventListener("pointermove", (event) => {
    if (!at("swipe").hasPointerCapture(event.pointerId)) return;
    const box = viewer.container.getBoundingClientRect();
    slide((event.clientX - box.left) / box.width);
  });
  at("swipe").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 }[event.key];
    if (step !== undefined) {
      slide(share + step);
      event.preventDefault();
      event.stopPropagation();
    }
  });

  // --- overlays

  const shown = { grid: false, rate: false };
  let rates = null, heat = null, low = 0, high = 0;
  const colour = (value) => {
    const place = Math.min(Math.max(high > low ? (value - low) / (high - low) : 0, 0), 1) * (RAMP.length - 1);
    const first = Math.min(Math.floor(place), RAMP.length - 2), part = place - first;
    return RAMP[first].map((one, channel) => Math.round(one + (RAMP[first + 1][channel] - one) * part));
  };
  const tileOf = (row, col) => {
    const left = col * info.tile, up = row * info.tile;
    return { left, up, right: Math.min(left + info.tile, info.width), down: Math.min(up + info.tile, info.height) };
  };
  const bitsOf = (row, col) => {
    const bytes = rates.bytes[row * rates.cols + col], box = tileOf(row, col);
    return bytes < 0 ? null : 8 * bytes / ((box.right - box.left) * (box.down - box.up));
  };
  const weight = (bytes) => bytes < 1000 ? `${bytes} B` : `${(bytes / 1000).toPrecision(3)} kB`;

  // The map as a picture with one pixel a tile: a scene of a million tiles is drawn as fast as one of nine.
  const paint = (all) => {
    const picture = document.createElement("canvas");
    picture.width = rates.cols;
    picture.height = rates.rows;
    const pen = picture.getContext("2d"), dots = pen.createImageData(rates.cols, rates.rows);
    all.forEach((bits, place) => dots.data.set(bits === null ? [200, 0, 0, 180] : [...colour(bits), 140], 4 * place));
    pen.putImageData(dots, 0, 0);
    return picture;
  };
  const draw = () => {
    const canvas = at("overlay"), ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!items.decoded || !(shown.grid || shown.rate && rates)) return;
    const toScreen = (x, y) => viewer.viewport.pixelFromPoint(items.decoded.imageToViewportCoordinates(x, y, true), true);
    const origin = toScreen(0, 0), far = toScreen(info.width, info.height);
    const scale = (far.x - origin.x) / info.width, side = info.tile * scale;
    const cols = Math.ceil(info.width / info.tile), rows = Math.ceil(info.height / info.tile);
    const firstCol = Math.max(Math.floor(-origin.x / side), 0), lastCol = Math.min(Math.ceil((width - origin.x) / side), cols);
    const firstRow = Math.max(Math.floor(-origin.y / side), 0), lastRow = Math.min(Math.ceil((height - origin.y) / side), rows);
    if (shown.rate && rates) {
      pen.save();
      pen.beginPath();
      pen.rect(origin.x, origin.y, far.x - origin.x, far.y - origin.y);
      pen.clip();
      pen.imageSmoothingEnabled = false;
      pen.drawImage(heat, origin.x, origin.y, cols * side, rows * side);
      pen.font = "12px system-ui, sans-serif";
      pen.textAlign = "center";
      pen.lineWidth = 3;
      pen.strokeStyle = "rgb(0 0 0 / 70%)";
      pen.fillStyle = "#fff";
      for (let row = firstRow; row < lastRow && side > 72; row++) {
        for (let col = firstCol; col < lastCol; col++) {
          const box = tileOf(row, col), bytes = rates.bytes[row * rates.cols + col];
          if ((box.right - box.left) * scale < 60 || (box.down - box.up) * scale < 24) continue;
          const x = origin.x + (box.left + box.right) / 2 * scale, y = origin.y + (box.up + box.down) / 2 * scale + 4;
          pen.strokeText(bytes < 0 ? "lost" : weight(bytes), x, y);
          pen.fillText(bytes < 0 ? "lost" : weight(bytes), x, y);
        }
      }
      pen.restore();
    }
    if (shown.grid && side >= 4) {
      pen.beginPath();
      for (let col = firstCol; col <= lastCol; col++) {
        const x = Math.round(origin.x + Math.min(col * info.tile, info.width) * scale) + 0.5;
        pen.moveTo(x, Math.max(origin.y, 0));
        pen.lineTo(x, Math.min(far.y, height));
      }
      for (let row = firstRow; row <= lastRow; row++) {
        const y = Math.round(origin.y + Math.min(row * info.tile, info.height) * scale) + 0.5;
        pen.moveTo(Math.max(origin.x, 0), y);
        pen.lineTo(Math.min(far.x, width), y);
      }
      pen.lineWidth = 3;
      pen.strokeStyle = "rgb(0 0 0 / 45%)";
      pen.stroke();
      pen.lineWidth = 1;
      pen.strokeStyle = "rgb(255 255 255 / 90%)";
      pen.stroke();
    }
  };
  const toggle = async (name) => {
    shown[name] = !shown[name];
    at(name).setAttribute("aria-pressed", String(shown[name]));
    if (name === "rate" && shown.rate && !rates) {
      try {
        rates = await fetchJson("rates");
      } catch (error) {
        fail(error.message);
        return;
      }
      const all = rates.bytes.map((_, place) => bitsOf(Math.floor(place / rates.cols), place % rates.cols));
      const known = all.filter((bits) => bits !== null).sort((a, b) => a - b);
      low = known[0] ?? 0;
      high = known[known.length - 1] ?? 0;
      heat = paint(all);
      at("legend-low").textContent = low.toPrecision(3);
      at("legend-high").textContent = high.toPrecision(3);
      document.querySelector("#legend .ramp").style.background =
        `linear-gradient(90deg, ${RAMP.map((one) => `rgb(${one.join(" ")})`).join(", ")})`;
    }
    at("legend").hidden = !shown.rate;
    at("scene").classList.toggle("grey", shown.rate);  // so that the only colours are those of the map
    draw();
    tell();
  };

  // --- the line below

  let pointer = null;
  const tell = () => {
    if (!items.decoded || !pointer) return;
    const box = viewer.container.getBoundingClientRect();
    const point = new OpenSeadragon.Point(pointer.clientX - box.left, pointer.clientY - box.top);
    const spot = items.decoded.viewportToImageCoordinates(viewer.viewport.pointFromPixel(point, true), true);
    const col = Math.floor(spot.x), row = Math.floor(spot.y);
    if (col < 0 || row < 0 || col >= info.width || row >= info.height) {
      at("place").textContent = "\u00a0";
      return;
    }
    const key = [Math.floor(row / info.tile), Math.floor(col / info.tile)];
    let words = `column ${col}, row ${row}`;
    if (info.transform) {
      const [a, b, c, d, e, f] = info.transform;
      const digits = Math.abs(a) < 0.01 ? 6 : 2;
      words += `; x ${(a * spot.x + b * spot.y + c).toFixed(digits)}, y ${(d * spot.x + e * spot.y + f).toFixed(digits)}`;
    }
    words += `; tile ${key.join(",")}`;
    if (rates) {
      const bits = bitsOf(...key);
      words += bits === null ? ", lost"
        : `, ${weight(rates.bytes[key[0] * rates.cols + key[1]])}, ${bits.toPrecision(3)} bits per pixel`;
    }
    at("place").textContent = words;
  };
  const about = () => {
    const show = info.shown;
    const number = (value) => Number(value.toPrecision(5)).toString();
    let words = `${info.width} x ${info.height}, ${info.dtype}, band${show.bands.length > 1 ? "s" : ""} ${show.bands.join(" ")}`;
    words += info.dtype === "uint8" && show.low.every((one) => one === 0) && show.high.every((one) => one === 255) ? ""
      : `; stretched ${show.low.map((one, place) => `${number(one)}..${number(show.high[place])}`).join(", ")} (${show.stretch})`;
    words += `; ${info.bpp.toPrecision(3)} bits per pixel, ${info.model} at quality ${info.quality}; lossy`;
    words += info.page_format === "png" ? "" : `; shown as ${info.page_format}`;
    at("about").textContent = at("about").title = words;
  };

  // --- together

  at("name").textContent = document.title = info.name;
  about();
  viewer.addHandler("viewport-change", place);
  viewer.addHandler("update-viewport", draw);
  viewer.addHandler("resize", () => { place(); draw(); });
  viewer.addHandler("animation-finish", () => {
    const smooth = items.decoded.viewportToImageZoom(viewer.viewport.getZoom(true)) < 2;
    viewer.drawer.setImageSmoothingEnabled(smooth);  // whoever looks closer wants to see pixels
    tell();
  });
  viewer.addHandler("tile-drawn", () => { document.body.dataset.drawn = "yes"; });
  viewer.container.addEventListener("pointermove", (event) => { pointer = event; tell(); });
  viewer.container.addEventListener("pointerleave", () => { pointer = null; at("place").textContent = "\u00a0"; });
  at("zoom-in").onclick = () => { viewer.viewport.zoomBy(2); viewer.viewport.applyConstraints(); };
  at("zoom-out").onclick = () => { viewer.viewport.zoomBy(0.5); viewer.viewport.applyConstraints(); };
  at("home").onclick = () => viewer.viewport.goHome();
  at("one").onclick = () => {
    viewer.viewport.zoomTo(items.decoded.imageToViewportZoom(1 / (window.devicePixelRatio || 1)));
    viewer.viewport.applyConstraints();
  };
  for (const name of ["grid", "rate"]) at(name).onclick = () => toggle(name);
  for (const button of document.querySelectorAll("[data-mode]")) button.onclick = () => choose(button.dataset.mode);

  if (info.original) await add("original", "original_files", info.original.version, 0);
  await add("decoded", "image_files", info.version, 1);
  viewer.viewport.goHome(true);
  while (info.original && info.original.done < 1 && !info.original.failed) {
    at("preparing").hidden = false;
    at("preparing").textContent = `reading ${info.original.name}: ${Math.floor(100 * info.original.done)} %`;
    await new Promise((resolve) => setTimeout(resolve, 1000));
    info.original = (await fetchJson("info")).original;
  }
  const failed = Boolean(info.original && info.original.failed);
  at("preparing").hidden = !failed;
  if (failed) at("preparing").textContent = `${info.original.name} cannot be read; the log of the server says why`;
  at("modes").hidden = !info.original || failed;
  document.body.dataset.ready = "yes";
  window.ditic = { viewer, items, shown, mode: () => mode, share: () => share };  // for tests and the curious
})();
