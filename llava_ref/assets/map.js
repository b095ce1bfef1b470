// Lay numbers over a picture, in the colours of the scale: the custom properties of scale.css.

const property = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const COLOURS = { more: property("--more"), less: property("--less"), strongest: Number(property("--strongest")) };

// Fill a box with a number's colour. `part`: the number over the end of its scale, -1 to 1
export function tint(pen, part, left, top, right, bottom) {
  const x = Math.round(left), y = Math.round(top); // whole pixels, so that no seam shows between two boxes
  pen.globalAlpha = COLOURS.strongest * Math.min(Math.abs(part), 1);
  pen.fillStyle = part < 0 ? COLOURS.less : COLOURS.more;
  pen.fillRect(x, y, Math.round(right) - x, Math.round(bottom) - y);
  pen.globalAlpha = 1;
}

// Draw the picture, its longer side `side` pixels long; return the pixels of the canvas for each of its own
export function drawPicture(canvas, image, [width, height], side) {
  const zoom = side / Math.max(width, height), pen = canvas.getContext("2d");
  canvas.width = Math.max(1, Math.round(width * zoom));
  canvas.height = Math.max(1, Math.round(height * zoom));
  pen.imageSmoothingEnabled = zoom < 1 || side / zoom > 256; // else every pixel of a small picture is to be seen
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  return zoom;
}

// Return the ends of a scale: from 0, or the smallest number below it, to the largest, but at least to `least`
export function endsOf(numbers, least) {
  return numbers.reduce(([low, high], number) => [Math.min(low, number), Math.max(high, number)], [0, least]);
}

// Draw a grid of numbers over the picture. `place`: { source, size, affine } of the picture; `ends` of the scale
export function drawMap(canvas, image, place, values, ends, side = 720) {
  const [sx, sy, dx, dy] = place.affine, zoom = drawPicture(canvas, image, place.source, side), pen = canvas.getContext("2d");
  const across = place.size[0] / values[0].length * sx * zoom, down = place.size[1] / values.length * sy * zoom, most = Math.max(ends[1], -ends[0]);
  values.forEach((row, y) => row.forEach((value, x) => {
    tint(pen, value / most, x * across + dx * zoom, y * down + dy * zoom, (x + 1) * across + dx * zoom, (y + 1) * down + dy * zoom);
  }));
}

// Call `tell` with the number under the pointer, or with undefined outside of the map
export function pointing(canvas, { source: [width, height], size, affine: [sx, sy, dx, dy] }, values, tell) {
  canvas.onmouseleave = () => tell();
  canvas.onmousemove = event => {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width * width - dx) / sx / size[0] * values[0].length);
    const y = Math.floor(((event.clientY - box.top) / box.height * height - dy) / sy / size[1] * values.length);
    tell(values[y]?.[x]);
  };
}

// Say the ends of a scale, and a number between them. `measure`: { factor, unit }; `scale`: a .bar and its .ends
export function legend(scale, [low, high], { factor, unit }, number) {
  const bar = scale.querySelector(".bar"), [from, here, to] = scale.querySelector(".ends").children;
  bar.style.setProperty("--zero", `${100 * -low / (high - low)}%`);
  bar.style.setProperty("--low", Math.min(1, -low / high));
  from.textContent = low ? (low * factor).toPrecision(3) : "0";
  to.textContent = `${Number((high * factor).toPrecision(3))} ${unit}`;
  here.textContent = number === undefined ? "" : `here ${Number((number * factor).toPrecision(3))}`;
}
