"""Strings that try to make a page act, load, hide or break. Each would set `window.hit`, open a dialog or send a request."""

from __future__ import annotations

from typing import Final

HIT: Final = "window.hit=1"
FAR: Final = "https://far.test/x"

MARKUP: Final = (
    f"<script>{HIT}</script>",
    f'"><script>{HIT}</script>',
    f"'><script>{HIT}</script>",
    f"</script><script>{HIT}</script>",
    f"</style><script>{HIT}</script>",
    f"</title><script>{HIT}</script>",
    f"</textarea></option></select><script>{HIT}</script>",
    f"<scr<script>ipt>{HIT}</scr</script>ipt>",
    f"<SCRIPT SRC={FAR}.js></SCRIPT>",
    f"<img src=x onerror={HIT}>",
    f'"><img src=x onerror="{HIT}">',
    f"<img src={FAR}.gif>",
    f"<image href={FAR}.gif>",
    f'" onmouseover="{HIT}" autofocus onfocus="{HIT}" x="',
    f"' onload='{HIT}' style='background:url({FAR})' y='",
    f"` onerror=`{HIT}`",
    f"<svg onload={HIT}>",
    f"<svg><script>{HIT}</script></svg>",
    f"<svg><animate onbegin={HIT} attributeName=x dur=1s>",
    f"<svg><use href='data:image/svg+xml,<svg id=x onload={HIT}>#x'/></svg>",
    f"<math><mi xlink:href=javascript:{HIT}>x</mi></math>",
    f"<math><mtext><table><mglyph><style><!--</style><img src onerror={HIT}>",
    f"<noscript><p title='</noscript><img src=x onerror={HIT}>'>",
    f"<svg></p><style><a id='</style><img src=1 onerror={HIT}>'>",
    f"<form><math><mtext></form><form><mglyph><style></math><img src onerror={HIT}>",
    f"<!--><img src=x onerror={HIT}>-->",
    f"<![CDATA[><img src=x onerror={HIT}>]]>",
    f"<iframe src=javascript:{HIT}></iframe>",
    f"<iframe srcdoc='<script>parent.{HIT}</script>'></iframe>",
    f"<object data={FAR}></object><embed src={FAR}>",
    f"<base href={FAR}/>",
    f"<meta http-equiv=refresh content='0;url={FAR}'>",
    '<meta http-equiv="Content-Security-Policy" content="script-src *; img-src *">',
    f"<link rel=stylesheet href={FAR}.css><link rel=prefetch href={FAR}>",
    f"<style>@import '{FAR}.css'; body {{ background: url({FAR}) }} * {{ display: none }}</style>",
    f"}} body {{ background: url({FAR}) }} .x {{",
    f"<form action={FAR}><input name=x><button>send</button></form>",
    f"<details open ontoggle={HIT}><summary>x</summary></details>",
    f"<video src={FAR} onerror={HIT} autoplay></video><audio src={FAR}>",
    f"<template><script>{HIT}</script></template>",
    f"<a href=javascript:{HIT}>press</a>",
    "</main></body></html>",
    "<plaintext>",
    "<xmp>",
    "<marquee onstart=alert(1)>",
    "<body onload=alert(1)>",
    "<script>alert(1)//",
    "]]></svg><script>prompt(1)</script>",
)
URLS: Final = (
    f"javascript:{HIT}",
    f"JaVaScRiPt:{HIT}//https://a.test/",
    f"java\nscript:{HIT}",
    f"\x01javascript:{HIT}",
    f"data:text/html,<script>{HIT}</script>",
    f"data:image/svg+xml,<svg onload={HIT}>",
    "vbscript:msgbox(1)",
    "file:///etc/passwd",
    f'https://a.test/" onclick="{HIT}',
    f"https://a.test/'><script>{HIT}</script>",
    "//far.test/x",
    "https://user:pass@far.test:99999/",
)
TEMPLATES: Final = (
    "{{ 7*7 }}{% for x in range(9) %}{{ x }}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "${7*7} #{7*7} <%= 7*7 %>",
    "&lt;script&gt;window.hit=1&lt;/script&gt;",
    "&#x3c;img src=x onerror=window.hit=1&#x3e;",
    "\\u003cscript\\u003ewindow.hit=1\\u003c/script\\u003e",
)
UNSEEN: Final = (
    "evil\u202egnp.exe",
    "\u2066\u2067\u2068 never closed",
    "\x00\x01\x02\x08\x0b\x0c\x1b[31m\x7f\x85",
    "a\u200bb\u200cc\u200dd\ufeffe\u00adf",
    "lone \ud800 and \udfff surrogates",
    "\u2028window.hit=1\u2029",
    "Z" + "\u0301\u0334\u0489" * 400,
    "\U000e0001\U000e0041\U000e007f",
    "\ufffe\uffff\ufdd0",
)
LARGE: Final = ("x" * 1_000_000, "<b>" * 100_000, "\u202e" * 200_000, "\n" * 100_000, "&" * 300_000)

HOSTILE: Final = (*MARKUP, *URLS, *TEMPLATES, *UNSEEN, *LARGE)
