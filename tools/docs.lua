-- Quarto's callouts for pandoc: ::: {.callout-note title="..." collapse="true"}
-- Without `title`, the first heading is the title, else the kind of callout.
function Div(div)
  local kind = table.concat(div.classes, " "):match("callout%-(%a+)")
  if not kind then
    return nil
  end
  if not FORMAT:match("html") then
    error("a callout in the README's notebook: GitHub shows it only as Quarto renders it, write a paragraph instead")
  end
  local title = pandoc.Inlines(div.attributes.title or (kind:sub(1, 1):upper() .. kind:sub(2)))
  local first = div.content[1]
  if not div.attributes.title and first and first.t == "Header" then
    title = first.content
    div.content:remove(1)
  end
  local open = div.attributes.collapse == "true" and "" or " open"
  local summary = pandoc.write(pandoc.Pandoc(pandoc.Plain(title)), "html")
  local head = string.format('<details class="callout %s"%s><summary>%s</summary>', kind, open, summary)
  return { pandoc.RawBlock("html", head), pandoc.Div(div.content), pandoc.RawBlock("html", "</details>") }
end

-- nbdev begins the code of a signature with an empty line.
function CodeBlock(block)
  block.text = block.text:gsub("^\n+", "")
  return block
end
