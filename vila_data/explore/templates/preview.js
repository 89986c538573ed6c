"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const items = [...document.querySelectorAll(".item")];
  const bar = document.querySelector(".bar");
  const fields = { words: $("words"), corpus: $("corpus"), fate: $("fate"), reason: $("reason"), low: $("low"), high: $("high") };
  const texts = new Map();
  let current = -1;

  const textOf = (item) => {
    if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
    return texts.get(item);
  };
  const value = (name) => (fields[name] ? fields[name].value : "");
  const number = (name) => (value(name).trim() === "" ? NaN : Number(value(name)));

  const wanted = () => ({
    words: value("words").toLowerCase().split(/\s+/).filter(Boolean),
    corpus: value("corpus"), fate: value("fate"), reason: value("reason"),
    low: number("low"), high: number("high"),
  });

  const fits = (item, want) => {
    const data = item.dataset;
    if (want.corpus && data.corpus !== want.corpus) return false;
    if (want.fate && !data.fates.split(" ").includes(want.fate)) return false;
    if (want.reason && !data.reasons.split(" ").includes(want.reason.replaceAll(" ", "_"))) return false;
    if (!Number.isNaN(want.low) || !Number.isNaN(want.high)) {
      const scores = data.scores ? data.scores.split(" ").map(Number) : [];
      if (!scores.some((score) => !(score < want.low) && !(score > want.high))) return false;
    }
    return want.words.every((word) => textOf(item).includes(word));
  };

  const left = () => items.filter((item) => !item.hidden);

  const highlight = (words) => {
    if (!window.Highlight) return;
    const ranges = [];
    for (const item of words.length ? left() : []) {
      const walker = document.createTreeWalker(item, NodeFilter.SHOW_TEXT);
      for (let node = walker.nextNode(); node && ranges.length < 2000; node = walker.nextNode()) {
        const text = node.data.toLowerCase();
        if (text.length !== node.data.length) continue;
        for (const word of words) {
          for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + word.length)) {
            const range = new Range();
            range.setStart(node, at);
            range.setEnd(node, at + word.length);
            ranges.push(range);
          }
        }
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  };

  const apply = () => {
    const want = wanted();
    for (const item of items) item.hidden = !fits(item, want);
    const shown = left().length;
    $("count").textContent = `${shown === items.length ? "" : `${shown} of `}${items.length} ${items.length === 1 ? "record" : "records"}`;
    $("nothing").hidden = shown > 0 || items.length === 0;
    const active = ["corpus", "fate", "reason", "low", "high"].filter((name) => value(name) !== "").length;
    highlight(want.words);
    $("active").textContent = active ? ` (${active})` : "";
  };

  const reset = () => {
    for (const field of Object.values(fields)) if (field) field.value = "";
    apply();
  };

  const toggle = (open) => {
    $("fields").hidden = !open;
    $("more").setAttribute("aria-expanded", String(open));
  };

  const step = (by) => {
    const shown = left();
    if (!shown.length) return;
    let place = shown.indexOf(items[current]);
    if (place < 0) {
      const top = bar.getBoundingClientRect().bottom;
      const first = shown.findIndex((item) => item.getBoundingClientRect().bottom > top + 40);
      place = by > 0 ? (first < 0 ? shown.length - 1 : first) : (first < 0 ? shown.length : first) - 1;
    } else {
      place += by;
    }
    if (!window.matchMedia("(min-width: 46rem)").matches) toggle(false);
    const item = shown[Math.min(Math.max(place, 0), shown.length - 1)];
    current = items.indexOf(item);
    item.focus({ preventScroll: true });
    item.scrollIntoView({ block: "start", behavior: "instant" });
  };

  document.addEventListener("focusin", (event) => {
    const item = event.target.closest(".item");
    if (item) current = items.indexOf(item);
  });

  const typing = (target) => target.closest("input, select, textarea, [contenteditable]");
  const keys = {
    j: () => step(1), ArrowRight: () => step(1), k: () => step(-1), ArrowLeft: () => step(-1),
    "/": () => fields.words.focus(), f: () => toggle($("fields").hidden), r: reset, "?": () => $("keys").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || $("keys").open) return;
    if (typing(event.target)) {
      if (event.key === "Escape" && event.target === fields.words) fields.words.blur();
      return;
    }
    if (event.key.startsWith("Arrow") && event.target.closest(".wide")) return;
    const action = keys[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  for (const field of Object.values(fields)) if (field) field.addEventListener("input", apply);
  $("more").addEventListener("click", () => toggle($("fields").hidden));
  $("reset").addEventListener("click", reset);
  $("again").addEventListener("click", () => { reset(); fields.words.focus(); });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("help").addEventListener("click", () => $("keys").showModal());
  $("close").addEventListener("click", () => $("keys").close());
  const wide = window.matchMedia("(min-width: 46rem)");
  bar.hidden = false;
  toggle(wide.matches);
  new ResizeObserver(() => {
    document.documentElement.style.setProperty("--bar", `${bar.offsetHeight}px`);
  }).observe(bar);
  reset();
})();
