// The tiles of a Gram matrix, how blocks share tiles of 16 x 16, and how they share long rows. The
// rows of a pool and its first query make a lower triangle. Further queries make a rectangle below
// it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace hullft {

constexpr int kGridSide = 16;      // rows of a strip, and of a tile either way
constexpr int kBlockWarps = 8;     // each takes an equal part of the run
constexpr int kMostWarpTiles = 6;  // whose sums fit the registers of a thread
constexpr int kMostStrips = 15;    // whose slices fit shared memory three times

constexpr int parts(int whole, int part) { return (whole + part - 1) / part; }

// Tiles of one pool.
struct Tiles {
  int strips;   // of the triangle
  int columns;  // strips of the rectangle's columns
  int64_t triangle, all;
};

inline Tiles tiles_of(int width, int queries, int side) {
  const int strips = parts(width + (queries > 0 ? 1 : 0), side), columns = parts(width, side);
  const int64_t triangle = int64_t(strips) * (strips + 1) / 2;
  const int64_t below = parts(width + queries, side) - strips;
  return {strips, columns, triangle, triangle + below * columns};
}

// A triangle of few strips is one, of many it is cut into squares with a triangle along the
// diagonal. A block takes a run of the tiles of one triangle or square, counted row by row, or a
// whole panel of the rectangle.
struct TileGrid {
  int side;     // strips of a square
  int squares;  // along the diagonal
  int run;      // tiles of a block
  int blocks_of_triangle, blocks_of_square;
  int panel_rows, panel_columns;  // strips
  int panels_across;
  int64_t first_square, first_panel, blocks;  // triangles' blocks come first

  int triangle_tiles() const { return side * (side + 1) / 2; }
};

// A run of a square touches at most 7 of its rows, and its columns are at most 8: 15 strips.
constexpr int kMostSquareStrips = 8;
static_assert((kBlockWarps * kMostWarpTiles - 2) / kMostSquareStrips + 2 + kMostSquareStrips <=
              kMostStrips);

inline TileGrid tile_grid(int width, int queries, int warp_tiles) {
  const Tiles tiles = tiles_of(width, queries, kGridSide);
  const int strips = tiles.strips;
  TileGrid grid{};
  grid.squares = strips <= kMostStrips ? 1 : parts(strips, kMostSquareStrips);
  grid.side = parts(strips, grid.squares);
  grid.run = kBlockWarps * warp_tiles;
  grid.blocks_of_triangle = parts(grid.triangle_tiles(), grid.run);
  grid.blocks_of_square = parts(grid.side * grid.side, grid.run);
  grid.panels_across = parts(tiles.columns, kMostSquareStrips);
  grid.panel_columns = parts(tiles.columns, grid.panels_across);
  grid.panel_rows = std::min(grid.run / grid.panel_columns, kMostStrips - grid.panel_columns);
  const int below = parts(width + queries, kGridSide) - grid.squares * grid.side;
  grid.first_square = int64_t(grid.squares) * grid.blocks_of_triangle;
  grid.first_panel =
      grid.first_square + int64_t(grid.squares) * (grid.squares - 1) / 2 * grid.blocks_of_square;
  grid.blocks =
      grid.first_panel + int64_t(grid.panels_across) * parts(std::max(below, 0), grid.panel_rows);
  return grid;
}

// Columns of long rows for a block, whose sums are float64. `count` is 0 where rows are short.
struct Shares {
  int64_t columns;
  int count;
};

constexpr int64_t kLongRow = int64_t(1) << 15;
constexpr int64_t kLongWideRow = int64_t(1) << 12;  // where few blocks make float64 products
constexpr int64_t kLeastShare = 1024;               // whole slices of every dtype
constexpr int64_t kMostShares = 512;

// So many columns that a share's products are an eighth of its rows' bytes at most.
inline Shares shares_of(int64_t d, int width, bool wide) {
  constexpr int64_t kWorthIt = 4;
  if (d < (wide ? kLongWideRow : kLongRow)) return {d, 0};
  const int64_t least = std::max({kLeastShare, int64_t(16) * width, d / kMostShares});
  const int64_t columns = (least + kLeastShare - 1) / kLeastShare * kLeastShare;
  if (d < kLongRow && d <= (kWorthIt - 1) * columns) return {d, 0};
  return {columns, int((d + columns - 1) / columns)};
}

}  // namespace hullft
