"""`search`."""

import argparse

from accel_train.commands.arguments import (
    CHECKPOINT_HELP,
    OVERRIDES_HELP,
    Parser,
    checkpoint_name,
    make_parser,
    positive,
)
from accel_train.commands.models import SOURCE_HELP
from accel_train.errors import UserError

DEFAULT_PORT = 8765
MAX_TOP = 1000
KINDS = {"images": ("image",), "texts": ("text",)}


def search(argv: list[str]) -> None:
    """Finds images for a text, texts for an image, or images like an image, with a trained dual encoder.

    What is searched is a folder of images, a split, a file of texts, or features that `embed` wrote. Its features are kept
    in an index, so that the next search computes those of new and changed files alone. Without a query only the index is
    brought up to date. --serve opens a page on this machine, with the same search in a browser.
    """
    parser = make_parser(
        search, "accel-train search runs/quickstart --images photos --query 红色的花 --contact-sheet sheet.png"
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help=OVERRIDES_HELP)
    parser.add_argument("--checkpoint", type=checkpoint_name, metavar="C", help=f"of a run: {CHECKPOINT_HELP}")
    _add_searched(parser)
    _add_queries(parser)
    output = parser.add_argument_group("results")
    output.add_argument("--top", type=positive, default=10, metavar="N", help="results of each query (default: 10)")
    output.add_argument("--json", action="store_true", help="print JSON instead of lines")
    output.add_argument("--contact-sheet", metavar="PNG", help="draw the queries with the images found for them")
    output.add_argument(
        "--serve", action="store_true", help="open a page on 127.0.0.1, which no other machine can reach"
    )
    output.add_argument(
        "--port", type=int, metavar="N", help=f"port of --serve; 0 takes a free one (default: {DEFAULT_PORT})"
    )
    arguments = parser.parse_intermixed_args(argv)
    _check(arguments)

    from accel_train.tools.search.asked import Asked

    both = ("image", "text") if arguments.serve else None
    asked = Asked(
        images=arguments.images,
        split=arguments.split,
        data=arguments.data,
        texts=arguments.texts,
        features=arguments.features,
        kinds=KINDS[arguments.find] if arguments.find else both,
    )

    from accel_train.tools.search.command import Output, search_command

    search_command(
        arguments.source,
        asked,
        texts=arguments.query,
        text_file=arguments.queries,
        images=arguments.query_image,
        top=arguments.top,
        output=Output(
            arguments.json,
            arguments.contact_sheet,
            arguments.serve,
            DEFAULT_PORT if arguments.port is None else arguments.port,
        ),
        index=arguments.index,
        approximate=arguments.approximate,
        templates=arguments.templates,
        checkpoint=arguments.checkpoint,
        overrides=arguments.overrides,
    )


def _add_searched(parser: Parser) -> None:
    searched = parser.add_argument_group("what is searched")
    searched.add_argument("--images", metavar="FOLDER", help="all images of a folder and its subfolders")
    searched.add_argument("--split", help="images, or with --find texts the captions, of a split")
    searched.add_argument("--data", metavar="PATH", help="dataset of the split (default: data.path)")
    searched.add_argument("--texts", metavar="FILE", help="texts of a file, one a line")
    searched.add_argument(
        "--features",
        metavar="FILE",
        help="a file that `embed` wrote; name the folder or split that it is of as well, to see pictures",
    )
    searched.add_argument(
        "--find", choices=tuple(KINDS), help="what to find where there are both (default: images; with --serve both)"
    )
    searched.add_argument(
        "--index", metavar="FOLDER", help="where the index is kept (default: in ~/.cache/accel_train)"
    )
    searched.add_argument(
        "--approximate",
        action="store_true",
        help="search the nearest clusters instead of comparing all, for millions (pip install 'accel_train[ann]')",
    )


def _add_queries(parser: Parser) -> None:
    queries = parser.add_argument_group("queries")
    queries.add_argument(
        "--query", action="append", default=[], metavar="TEXT", help="a text to search by; may be repeated"
    )
    queries.add_argument("--queries", metavar="FILE", help="texts to search by, one a line")
    queries.add_argument(
        "--query-image", action="append", default=[], metavar="FILE", help="an image to search by; may be repeated"
    )
    queries.add_argument(
        "--templates", metavar="T", help="put texts into templates: a file with one a line, builtin:zh or builtin:en"
    )


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError for an option that would be ignored."""
    has_texts = bool(arguments.query) or arguments.queries is not None
    if arguments.serve:
        given = {
            "--query": arguments.query,
            "--queries": arguments.queries,
            "--query-image": arguments.query_image,
            "--json": arguments.json,
            "--contact-sheet": arguments.contact_sheet,
        }
        if ignored := [option for option, value in given.items() if value]:
            raise UserError(
                f"{ignored[0]} is not for --serve, whose queries are asked on the page. Take one of them out."
            )
    elif arguments.port is not None:
        raise UserError("--port is for --serve, so it would be ignored. Take it out.")
    elif arguments.templates is not None and not has_texts:
        raise UserError("--templates is for queries of text, and there are none. Take it out.")
    if arguments.port is not None and not 0 <= arguments.port <= 65535:
        raise UserError(f"--port is {arguments.port}; it must be 0 to 65535.")
    if arguments.top > MAX_TOP:
        raise UserError(f"--top is {arguments.top}; it can be at most {MAX_TOP}.")
    if arguments.index is not None and arguments.features is not None and not arguments.approximate:
        raise UserError("--index: --features is searched as it is, without an index. Take one of them out.")
