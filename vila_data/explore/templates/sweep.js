"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const cuts = [...document.querySelectorAll(".cut")];
  const bar = find("choose"), place = find("place"), chosen = find("chosen");
  const rows = [...document.querySelectorAll("#all tr[data-place]")];

  const show = (number, write) => {
    const at = Math.min(cuts.length - 1, Math.max(0, number));
    cuts.forEach((cut, index) => { cut.hidden = index !== at; });
    rows.forEach((row) => row.classList.toggle("chosen", Number(row.dataset.place) === at));
    place.value = String(at);
    place.setAttribute("aria-valuetext", cuts[at].dataset.value);
    chosen.textContent = cuts[at].dataset.said;
    find("before").disabled = at === 0;
    find("after").disabled = at === cuts.length - 1;
    if (write) history.replaceState(null, "", "#cut-" + at);
  };
  const current = () => Number(place.value);
  const asked = () => {
    const found = /^#cut-(\d+)$/.exec(location.hash);
    return found && Number(found[1]) < cuts.length ? Number(found[1]) : null;
  };

  bar.hidden = false;
  bar.parentElement.classList.add("one");
  show(asked() ?? Number(bar.dataset.start), false);
  place.addEventListener("input", () => show(current(), true));
  find("before").addEventListener("click", () => show(current() - 1, true));
  find("after").addEventListener("click", () => show(current() + 1, true));
  addEventListener("hashchange", () => {
    const at = asked();
    if (at === null) return;
    show(at, false);
    bar.scrollIntoView({ block: "start" });
  });
  addEventListener("keydown", (event) => {
    const inside = event.target.closest("input, select, textarea, summary, .wide");
    if (inside || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft") show(current() - 1, true);
    if (event.key === "ArrowRight") show(current() + 1, true);
  });

  const kinds = find("kinds");
  if (kinds) {
    const choose = () => {
      const kind = kinds.querySelector("input:checked").value;
      document.querySelectorAll(".pair").forEach((pair) => { pair.hidden = pair.dataset.kind !== kind; });
    };
    kinds.hidden = false;
    kinds.addEventListener("change", choose);
    choose();
  }
})();
