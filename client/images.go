package client

import (
	"context"
	"net/http"
	"net/url"

	"git.thaloco.com/thaloco/banger/api"
)

// Images returns the images of the store and of the catalog.
func (c *Client) Images(ctx context.Context) ([]api.Image, error) {
	return call[[]api.Image](ctx, c, http.MethodGet, "/images", nil)
}

// Image returns one image.
func (c *Client) Image(ctx context.Context, name string) (api.Image, error) {
	return call[api.Image](ctx, c, http.MethodGet, "/images/"+url.PathEscape(name), nil)
}

// PullImage makes an image local. Result: api.Image.
func (c *Client) PullImage(ctx context.Context, req api.PullImage) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/images/pull", req)
}

// DeleteImage deletes an image that no VM is pinned to.
func (c *Client) DeleteImage(ctx context.Context, name string) error {
	_, err := call[none](ctx, c, http.MethodDelete, "/images/"+url.PathEscape(name), nil)
	return err
}
