"use strict";
// Filters the cards of the page. The state is in the address (#grain=object&text=dog), so that what
// is shown can be linked. Texts are only ever read here, never written into the page.
(() => {
  const form = document.getElementById("filters");
  const shown = form.querySelector("output");
  const none = document.querySelector(".none");
  const fields = { grain: "", text: "", source: "", split: "", boxes: "region,object" };

  const cards = [...document.querySelectorAll(".card")].map((node) => ({
    node,
    source: node.dataset.source,
    split: node.dataset.split,
    texts: [...node.querySelectorAll(".t")].map((text) => ({
      node: text,
      grain: text.dataset.grain,
      words: text.textContent,
      item: text.closest("li"),
      mark: text.closest("li.mark")?.dataset.mark,
    })),
    drawn: [...node.querySelectorAll(".picture .mark")],
  }));

  // The rule of `--text`: words begin words, letters without case stand anywhere, /.../ is a regular
  // expression. Null for one that is none.
  function patterns(text) {
    try {
      if (text.length > 2 && text.startsWith("/") && text.endsWith("/")) {
        return [new RegExp(text.slice(1, -1), "iu")];
      }
      return text.split(/\s+/u).filter(Boolean).map((word) => {
        const plain = word.replace(/[\^$\\.*+?()[\]{}|/]/gu, "\\$&");
        const anywhere = /^(\p{Lo}|[^\p{L}\p{N}_])/u.test(word);
        return new RegExp((anywhere ? "" : "(?<![\\p{L}\\p{N}_])") + plain, "iu");
      });
    } catch {
      return null;
    }
  }

  function applyTo(card, state, query) {
    const said = card.texts.filter((text) => !state.grain || text.grain === state.grain);
    const found = new Set(query.length ? said.filter((t) => query.every((p) => p.test(t.words))) : []);
    const visible = (!state.source || card.source === state.source)
      && (!state.split || card.split === state.split)
      && (query.length ? found.size > 0 : !state.grain || said.length > 0);
    card.node.hidden = !visible;
    if (!visible) return false;
    const kept = new Set(said);
    for (const text of card.texts) {
      text.node.hidden = !kept.has(text);
      text.node.classList.toggle("found", found.has(text));
    }
    for (const item of new Set(card.texts.map((text) => text.item))) {
      item.hidden = !card.texts.some((text) => text.item === item && kept.has(text));
    }
    const marks = (texts) => new Set([...texts].map((text) => text.mark).filter(Boolean));
    const boxes = state.boxes.split(",");
    const drawable = marks(said.filter((text) => boxes.includes(text.grain)));
    const meant = marks(found);
    for (const drawn of card.drawn) {
      // An SVG group has no `hidden` of its own, but the page's style gives it the meaning.
      drawn.toggleAttribute("hidden", !drawable.has(drawn.dataset.mark));
      drawn.classList.toggle("aside", meant.size > 0 && !meant.has(drawn.dataset.mark));
    }
    return true;
  }

  function apply(state) {
    const query = patterns(state.text.trim());
    form.elements.text.setAttribute("aria-invalid", String(query === null));
    const visible = cards.filter((card) => applyTo(card, state, query ?? [])).length;
    none.hidden = visible > 0;
    shown.textContent = query === null
      ? "no regular expression"
      : `${visible.toLocaleString("en")} of ${cards.length.toLocaleString("en")} shown`;
  }

  function fromForm() {
    const data = new FormData(form);
    const state = Object.fromEntries(Object.keys(fields).map((name) => [name, data.get(name) ?? ""]));
    return { ...state, boxes: data.getAll("boxes").join(",") };
  }

  function toForm(state) {
    for (const name of ["source", "split"]) {
      const select = form.elements[name];
      if (![...select.options].some((option) => option.value === state[name])) {
        select.add(new Option(`${state[name]} (0)`, state[name]));
        select.parentElement.hidden = false;
      }
      select.value = state[name];
    }
    form.elements.text.value = state.text;
    for (const radio of form.elements.grain) radio.checked = radio.value === state.grain;
    for (const box of form.elements.boxes) box.checked = state.boxes.split(",").includes(box.value);
  }

  function fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const state = Object.entries(fields).map(([name, usual]) => [name, given.get(name) ?? usual]);
    return Object.fromEntries(state);
  }

  function toAddress(state) {
    const given = Object.entries(state).filter(([name, value]) => value !== fields[name]);
    history.replaceState(null, "", `#${new URLSearchParams(given)}`);
  }

  function show(state) {
    toForm(state);
    apply(state);
  }

  // Arrow keys go through the boxes of a card.
  function step(list, key) {
    const items = [...list.children].filter((item) => !item.hidden);
    const at = items.findIndex((item) => item.classList.contains("on"));
    items[at]?.classList.remove("on");
    if (key === "Escape") return;
    const next = key === "ArrowDown" ? at + 1 : (at < 0 ? items.length : at) - 1;
    items[next]?.classList.add("on");
  }

  for (const list of document.querySelectorAll(".regions")) {
    list.tabIndex = 0;
    list.addEventListener("keydown", (event) => {
      if (!["ArrowDown", "ArrowUp", "Escape"].includes(event.key)) return;
      event.preventDefault();
      step(list, event.key);
    });
    list.addEventListener("blur", () => step(list, "Escape"));
  }

  const changed = () => {
    const state = fromForm();
    apply(state);
    toAddress(state);
  };
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    show(fields);
    toAddress(fields);
  });
  addEventListener("hashchange", () => show(fromAddress()));
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, select")) return;
    event.preventDefault();
    form.elements.text.focus();
  });

  form.hidden = false;
  show(fromAddress());
})();
