// Keep the newest turn in view until the reader scrolls up.

import { by } from "./base.js";

const NEAR = 40; // a reader who comes within this many pixels of the end is at the end
const page = document.scrollingElement;

let following = true, last = 0;
const below = () => by("talk").getBoundingClientRect().bottom - innerHeight; // pixels of conversation under the window

export function toNewest() {
  following = true;
  follow();
}

// Scroll to `elements`, the last one with priority, and stay there
export function stayAt(...elements) {
  following = false;
  for (const element of elements) element.scrollIntoView({ block: "nearest" });
  follow();
}

function follow() {
  if (following && below() > 0) page.scrollTop += Math.ceil(below());
  note();
}

function note() {
  last = page.scrollTop;
  by("newest").hidden = below() < NEAR;
}

// Any step up leaves the end, however small: a slow finger must not be pulled back
onscroll = () => {
  if (page.scrollTop < last) following = below() <= 0;
  else if (below() < NEAR) following = true;
  note();
};
onresize = follow;
new ResizeObserver(follow).observe(by("talk"));
