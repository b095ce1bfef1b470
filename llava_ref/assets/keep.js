// Keep the conversation in this tab, so that it survives a reload. Pictures are kept while the browser has room for them.

const PLACE = "llava-ref conversation";

// Keep turns: { text, pictures: [{ url, name, notes, stored, width, height }], answer, figures, before }. Returns "all", "words" or "nothing"
export function keep(turns) {
  const plain = turns.map(({ text, pictures, answer, figures, before }) => ({ text, answer, figures, before, pictures: pictures.map(({ url, name, notes, stored, width, height }) => ({ url, name, notes, stored, width, height })) }));
  const words = plain.map(turn => ({ ...turn, pictures: turn.pictures.map(picture => ({ ...picture, url: null })) }));
  try {
    sessionStorage.removeItem(PLACE);
    if (!turns.length) return "all";
    for (const [what, how] of [[plain, "all"], [words, "words"]]) {
      if (store(JSON.stringify(what))) return how;
    }
  } catch { /* storage is switched off */ }
  return "nothing";
}

function store(text) {
  try {
    sessionStorage.setItem(PLACE, text);
    return true;
  } catch {
    return false; // over the browser's quota
  }
}

export function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(PLACE)) ?? [];
  } catch {
    return [];
  }
}
