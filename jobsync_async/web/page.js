// Keeps the page as it is now: takes what changed from the server, which made the HTML, and counts
// times on. Without it a reload shows the same.
"use strict";
(() => {
  const channel = document.body.dataset.channel;
  const byId = (id) => document.getElementById(id);
  let since = document.body.dataset.since;
  // the server's clock minus ours, in seconds
  let ahead = Number(document.body.dataset.now) - Date.now() / 1000;
  let stream = null, heard = 0, anew = 0, flash = null;
  const now = () => Date.now() / 1000 + ahead;

  const UNITS = [["d", 86400], ["h", 3600], ["min", 60]];
  function span(seconds) {
    const [unit, length] = UNITS.find(([, long]) => seconds >= long) || ["s", 1];
    return `${Math.floor(Math.max(seconds, 0) / length)} ${unit}`;
  }
  function put(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }
  function count() {
    if (document.hidden) return;
    for (const time of document.querySelectorAll("time[data-at]"))
      put(time, span(now() - Number(time.dataset.at)));
    if (channel && stream && heard && performance.now() - heard > 10000) lost();
  }
  const two = (number) => String(number).padStart(2, "0");
  function local(within) {
    for (const time of within.querySelectorAll("time.moment:not([title])")) {
      const at = new Date(time.dateTime);
      time.title = time.textContent;
      time.textContent = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ` +
        `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
    }
  }

  // What has the focus keeps it, if it is still there, and what was opened stays open.
  function change(element, how) {
    const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
    const opened = element.matches("li") && element.querySelector("details[open]");
    const fresh = how();
    if (focused) byId(focused)?.focus({ preventScroll: true });
    if (opened) fresh.querySelector("details")?.setAttribute("open", "");
    local(fresh);
  }
  function made(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    return template.content.firstElementChild;
  }
  function parts(told) {
    for (const [id, html] of Object.entries(told)) {
      const element = byId(id);
      if (!element) return false;
      change(element, () => { element.innerHTML = html; return element; });
    }
    return true;
  }
  function lists(told) {
    for (const [id, { items = {}, order }] of Object.entries(told)) {
      const list = byId(id);
      for (const [key, html] of Object.entries(items)) {
        const old = byId(`${id}-${key}`), fresh = made(html);
        if (old) change(old, () => { old.replaceWith(fresh); return fresh; });
        else if (list) { list.append(fresh); local(fresh); }
      }
      if (!order || !list) continue;
      const wanted = new Set(order.map((key) => `${id}-${key}`));
      for (const element of [...list.children]) if (!wanted.has(element.id)) element.remove();
      let place = list.firstElementChild;
      for (const name of wanted) {
        const element = byId(name);
        if (!element) return false;
        if (element === place) place = place.nextElementSibling;
        else list.insertBefore(element, place);
      }
    }
    return true;
  }
  function beats(tenths) {
    const rows = byId("workers")?.children || [];
    tenths.forEach((tenth, place) => {
      const time = rows[place]?.querySelector(".beat time");
      if (time) time.dataset.at = now() - tenth / 10;
    });
  }

  // The picture becomes two canvases: the cells, and what moved last, which fades.
  function canvases() {
    const image = byId("cells");
    if (!image || image.tagName !== "IMG") return;
    const make = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      return canvas;
    };
    const draw = () => {
      const canvas = make();
      canvas.id = "cells";
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", image.alt);
      canvas.getContext("2d").drawImage(image, 0, 0);
      flash = make();
      flash.className = "flash";
      flash.setAttribute("aria-hidden", "true");
      image.replaceWith(canvas, flash);
    };
    if (image.complete) draw(); else image.addEventListener("load", draw);
  }
  function cells(told) {
    const canvas = byId("cells");
    if (canvas?.tagName !== "CANVAS") return false;
    const columns = canvas.width;
    const paper = canvas.getContext("2d"), light = flash.getContext("2d");
    light.clearRect(0, 0, flash.width, flash.height);
    light.fillStyle = getComputedStyle(document.body).color;
    for (const [colour, numbers] of Object.entries(told)) {
      paper.fillStyle = colour;
      for (const number of numbers) {
        const at = [number % columns, Math.floor(number / columns), 1, 1];
        paper.fillRect(...at);
        light.fillRect(...at);
      }
    }
    flash.classList.remove("on");
    void flash.offsetWidth; // begins the fading anew
    flash.classList.add("on");
    return true;
  }

  function state(text) {
    const element = byId("live");
    if (element) put(element, text);
  }
  function take(event) {
    const told = JSON.parse(event.data);
    heard = performance.now();
    ahead = told.now - Date.now() / 1000;
    since = event.lastEventId;
    const done = !told.reload && parts(told.parts || {}) && lists(told.lists || {}) &&
      (!told.cells || cells(told.cells));
    if (!done) { refresh(); return; }
    if (told.beats) beats(told.beats);
    count();
  }
  // The whole page once more, in place: after a long absence, or when the server began anew.
  async function refresh() {
    close();
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!fresh.body.dataset.channel) throw new Error(answer.statusText);
      byId("content").replaceWith(fresh.getElementById("content"));
      byId("banner").replaceWith(fresh.getElementById("banner"));
      since = fresh.body.dataset.since;
      ahead = Number(fresh.body.dataset.now) - Date.now() / 1000;
      begin();
      again(1000);
    } catch { lost(); }
  }
  function lost() {
    close();
    state("not live: the page's server does not answer; this is old");
    document.body.classList.add("lost");
    again(2000);
  }
  function close() {
    stream?.close();
    stream = null;
  }
  function again(wait) {
    clearTimeout(anew);
    anew = setTimeout(open, wait);
  }
  function open() {
    if (stream || document.hidden) return;
    stream = new EventSource(`./events?channel=${channel}&since=${encodeURIComponent(since)}`);
    heard = performance.now();
    stream.onopen = () => {
      heard = performance.now();
      document.body.classList.remove("lost");
      state("live");
    };
    stream.onmessage = take;
    stream.addEventListener("reload", refresh);
    stream.addEventListener("here", () => { heard = performance.now(); });
    stream.onerror = lost;
  }
  function begin() {
    local(document);
    canvases();
    count();
  }

  begin();
  setInterval(count, 1000);
  if (!channel) return;
  // A page that nobody sees costs nothing.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) close(); else if (!stream) again(0);
  });
  open();
})();
